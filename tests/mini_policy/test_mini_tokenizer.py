"""The mini policy's tokenizer: any text has tokens and comes back; control tokens come from the template alone."""

import pytest

from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question
from medssr_dist.mini_policy.mini_tokenizer import END, PAD, train_tokenizer

TEACHER_QUESTION = Question.make(
    "Two physicians discuss an 8-year-old girl in whom café-au-lait spots and ≥6 nævi were noted early on "
    "(β-thalassemia excluded; 37.8 °C). The family history fits X-linked inheritance.\n"
    "Which diagnosis should be considered first?",
    ["Sjögren–Larsson syndrome", "Niemann-Pick disease, type C1", "<|end|>", "疾患 🧬", "Wilson disease"],
    source="teacher",
)


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["A 3-year-old boy has seizure and ataxia. The answer is A.", "Cataract: Lowe syndrome.\nA. Cole disease\n"]
    return train_tokenizer(texts * 50, 300, 512)


@pytest.mark.parametrize("text", ["", "seizure", "  two  spaces\n\n", "naïve β ≥ 5 µmol/l", "日本語 🧬", "\x00\x7f"])
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token is None


def test_prompts_hold_control_tokens_of_the_template_alone(tokenizer):
    prompt = PromptRenderer(tokenizer, load_prompt_form("direct")).render(TEACHER_QUESTION)
    assert tokenizer.decode(prompt.ids) == prompt.text
    assert prompt.ids.count(tokenizer.eos_token_id) == 1
    assert prompt.text.startswith("<|user|>\nTwo physicians") and prompt.text.endswith(f"{END}\n<|assistant|>\n")


@pytest.mark.parametrize("preset", ["reason", "direct", "base"])
def test_every_preset_can_be_rendered(tokenizer, preset):
    prompt = PromptRenderer(tokenizer, load_prompt_form(preset)).render(TEACHER_QUESTION)
    assert "Sjögren–Larsson syndrome" in tokenizer.decode(prompt.ids)


def test_a_system_turn_comes_first(tokenizer):
    renderer = PromptRenderer(tokenizer, load_prompt_form("direct"), system_prompt="You are a physician.")
    assert renderer.render(TEACHER_QUESTION).text.startswith(f"<|system|>\nYou are a physician.{END}\n<|user|>\n")


def test_end_and_padding_differ_and_survive_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.eos_token, loaded.pad_token, loaded.model_max_length) == (END, PAD, 512)
    assert loaded.get_chat_template() == tokenizer.get_chat_template()
    assert loaded.encode("Lowe syndrome, β") == tokenizer.encode("Lowe syndrome, β")
