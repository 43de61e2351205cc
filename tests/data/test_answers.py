"""The reader of answers: every form, what is no statement, which statement wins, replies that are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.data.answers import Extraction, extract_answer, grade
from medssr_dist.data.prompt_forms import PRESETS, load_prompt_form
from medssr_dist.data.records import LETTERS, Question

OPTIONS = {"A": "Anemia", "B": "Aplastic anemia", "C": "Iron deficiency", "D": "Hemophilia (type A)"}
GERMS = {"A": "E. coli", "B": "C. difficile", "C": "S. aureus", "D": "B. cereus", "E": "Group A streptococcus"}
CELLS = {"A": "T-cell lymphoma", "B": "Hodgkin lymphoma", "C": "B-cell lymphoma", "D": "Vitamin A deficiency"}
YES_NO = {"A": "yes", "B": "no", "C": "maybe"}
NUMBERS = {"A": "1", "B": "2", "C": "3", "D": "4"}
TEN = {letter: f"compound {number}" for number, letter in enumerate(LETTERS[:10])}
BOTH = {"A": "Gout", "B": "Lupus", "C": "Both A and B", "D": "None of the above"}


def read(text, options=OPTIONS, truncated=False):
    return extract_answer(text, options, truncated).letter


@pytest.mark.parametrize(
    ("text", "letter", "method"),
    [
        ("The answer is (B).", "B", "statement"),
        ("the answer is b", "B", "statement"),
        ("The answer is [D]", "D", "statement"),
        ("**Answer:** C", "C", "statement"),
        ("The correct answer is: **B. Aplastic anemia**", "B", "statement"),
        ("The best answer is option C.", "C", "statement"),
        ("The answer is:\n\n B", "B", "statement"),
        ("## Answer\n\n**C. Iron deficiency**", "C", "statement"),
        ("Ans. (c)", "C", "statement"),
        ("The answer is, of course, B.", "B", "statement"),
        ("Answer: B \u2713", "B", "statement"),
        ("Final Answer - D", "D", "statement"),
        ("The answer to this question, given the marrow, is B.", "B", "statement"),
        ("So the answer must therefore be (B), as the marrow is empty.", "B", "statement"),
        ("The most likely answer would be B because all lines are low.", "B", "statement"),
        ("The only remaining option is (B)", "B", "statement"),
        ("Option B is the best answer.", "B", "statement"),
        ("Thus, (B) Aplastic anemia is the correct choice.", "B", "statement"),
        ("Aplastic anemia (B) is the correct answer.", "B", "statement"),
        ("I would choose option B.", "B", "statement"),
        ("We can rule out A, making B the best answer.", "B", "statement"),
        ("This leaves (C) as the correct choice.", "C", "statement"),
        ("If I had to choose, I would go with B.", "B", "statement"),
        ("#### B", "B", "statement"),
        ("The answer is $\\text{B}$", "B", "statement"),
        ("Answer: \\(B\\)", "B", "statement"),
        ("Answer: <b>B</b>", "B", "statement"),
        ("The answer is \u201cB\u201d.", "B", "statement"),
        ("The answer is \uff22.", "B", "statement"),
        ("Answer\uff1aB", "B", "statement"),
        (r"\boxed{B}", "B", "boxed"),
        (r"The answer is $\boxed{\text{C}}$", "C", "boxed"),
        (r"\boxed{B: Aplastic anemia, as the marrow is empty}", "B", "boxed"),
        (r"\boxed{\textbf{(B)}~\text{Aplastic anemia}}", "B", "boxed"),
        (r"\boxed{\text{Iron deficiency}}", "C", "boxed"),
        ("<answer>B</answer>", "B", "tag"),
        ("<answer>\n(C) Iron deficiency\n</answer>", "C", "tag"),
        ("<answer>iron deficiency</answer>", "C", "tag"),
        ("<final_answer>B</final_answer>", "B", "tag"),
        ("So <answer>B", "B", "tag"),
        ('{"step_by_step_thinking": "It is empty.", "answer_choice": "B"}', "B", "json"),
        ('{"reasoning": "x", "answer": "B. Aplastic anemia"}', "B", "json"),
        ("{'answer': 'B'}", "B", "json"),
        ('{"answer": {"letter": "B", "text": "Aplastic anemia"}}', "B", "json"),
        ('{"answer": ["B"]}', "B", "json"),
        ('{"thinking": "The answer would be C if ...", "Answer": "(B)"}', "B", "json"),
        ('{"answer": "B", "why": "Most would say the answer is C."}', "B", "json"),
        ('{"thinking": "So the answer choice is: C. Iron deficiency."}', "C", "statement"),
        ("Surely (C)", "C", "bracketed"),
        ("(B)", "B", "bracketed"),
        ("The most appropriate test is one of iron, that is, iron deficiency (choice C).", "C", "bracketed"),
        ("**B. Aplastic anemia**", "B", "bare"),
        ("B", "B", "bare"),
        (" b", "B", "bare"),
        ("B.", "B", "bare"),
        ("Option B", "B", "bare"),
        ("B. Aplastic anemia", "B", "bare"),
        ("I weighed (A) and (D), but they do not fit.\n\n**B. Aplastic anemia**", "B", "bare"),
        ("B) Aplastic anemia\n\nThe marrow is empty.", "B", "bare"),
        ("D. Hemophilia (type A).", "D", "bare"),
        ("So the best next step would be C. Iron deficiency.", "C", "closing"),
        ("All lines are low. Therefore, B.", "B", "closing"),
        ("All lines are low. B fits best this picture.", "B", "closing"),
        ("The answer is iron deficiency.", "C", "option_text"),
        ("Aplastic anemia", "B", "option_text"),
        ("hemophilia (TYPE A)", "D", "option_text"),
        ("All lines are low. Therefore, the most likely diagnosis is aplastic anemia.", "B", "option_text"),
        ("All lines are low. Thus aplastic anemia is the most likely diagnosis.", "B", "option_text"),
    ],
)
def test_forms(text, letter, method):
    assert extract_answer(text, OPTIONS) == Extraction(letter, method)


STATED_IN_OTHER_LANGUAGES = """\
故选B | 答案是B。 | 答案：B | 正确答案是 B. Aplastic anemia
所以本题选B。 | 最佳选项为（B）。 | 正解はBです。 | 答え：B
정답은 B입니다. | 정답: B | La respuesta correcta es B. | Respuesta: B) | La réponse est B.
La bonne réponse est la réponse B. | Die richtige Antwort ist B. | Antwort: B
Правильный ответ: B | A resposta correta é B. | La risposta corretta è B.
Đáp án đúng là B. | Doğru cevap: B | الإجابة الصحيحة هي B | सही उत्तर B है
Prawidłowa odpowiedź to B. | Jawaban: B | Het juiste antwoord is B."""


@pytest.mark.parametrize("text", STATED_IN_OTHER_LANGUAGES.replace("\n", " | ").split(" | "))
def test_statements_in_other_languages(text):
    assert extract_answer(text, OPTIONS) == Extraction("B", "statement")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", OPTIONS),
        ("The answer is (letter).", OPTIONS),
        ("The answer is (E).", OPTIONS),
        ("The answer is a drug", OPTIONS),
        ("The answer is A drop in pressure", OPTIONS),
        ("A patient presents with fever", OPTIONS),
        ("A drop in the blood count is seen.", OPTIONS),
        ("Anemia or iron deficiency", OPTIONS),
        ("It is aplastic anemia, not anemia", OPTIONS),
        ("anemias", OPTIONS),
        ("The answer is (AB)", OPTIONS),
        # denied
        ("The answer is not (A).", OPTIONS),
        ("The answer isn't A.", OPTIONS),
        ("The answer cannot be A.", OPTIONS),
        ("I don't think the answer is A.", OPTIONS),
        ("A is not the answer.", OPTIONS),
        ("The wrong answer is A.", OPTIONS),
        ("The answer is B. In fact, the answer is not B.", OPTIONS),
        ("答案不是A。", OPTIONS),
        ("选项A是错误的", OPTIONS),
        ("Die Antwort ist nicht A.", OPTIONS),
        # doubted, asked, supposed, quoted
        ("Could the answer be A?", OPTIONS),
        ("Is the answer A?", OPTIONS),
        ("The answer is A?", OPTIONS),
        ("Perhaps the answer is A.", OPTIONS),
        ("No evidence suggests the answer is A.", OPTIONS),
        ("The second best answer is A.", OPTIONS),
        ("Ruled-out answer: A", OPTIONS),
        ("The answer might be A.", OPTIONS),
        ("The answer could be A.", OPTIONS),
        ("If the ferritin were low, the answer would be C.", OPTIONS),
        ("The answer would be C if the ferritin were low.", OPTIONS),
        ("Had the marrow been full, the answer would be A.", OPTIONS),
        ("Some would say the answer is A.", OPTIONS),
        ("One might think the answer is A.", OPTIONS),
        ("At first I thought the answer is A.", OPTIONS),
        ("The user says that the answer is A.", OPTIONS),
        ("My colleague's answer is A.", OPTIONS),
        ("The answer changes to A in children.", OPTIONS),
        ("The answer is A (or C).", OPTIONS),
        (r"One is tempted to write \boxed{A} here.", OPTIONS),
        # several, or none
        ("The answer is (A) and (C).", OPTIONS),
        ("The answer is A or B.", OPTIONS),
        ("The answer is A/B.", OPTIONS),
        ("Answer: A, C", OPTIONS),
        ("Both A and C are correct.", OPTIONS),
        (r"\boxed{A} or \boxed{C}", OPTIONS),
        ('{"answer": ["A", "C"]}', OPTIONS),
        ('{"analysis": "The answer is A", "answer": null}', OPTIONS),
        ("The answer is B. On second view, the answer is A and B.", OPTIONS),
        ("ANSWER: None of the above", OPTIONS),
        ('{"answer_choice": "A and C"}', OPTIONS),
        ('{"answer_choice": "None of the above"}', OPTIONS),
        ("The answer cannot be determined.", OPTIONS),
        ("The answer depends on the stage: A at first and B later.", OPTIONS),
        # a letter and the text of another option
        ("The answer is A. Aplastic anemia", OPTIONS),
        ("The answer is (C) Aplastic anemia.", OPTIONS),
        ("The answer is aplastic anemia (C).", OPTIONS),
        # taken back
        ("The answer is A. Wait, the marrow is empty, so", OPTIONS),
        ("The answer is A. No, that is not right.", OPTIONS),
        ("答案是A。不对，应该是C。", OPTIONS),
        ("La réponse est A, non, plutôt C.", OPTIONS),
        # options that are only mentioned
        ("I'm sorry, I cannot give advice on aplastic anemia.", OPTIONS),
        ("Aplastic anemia would show an empty marrow, which is not seen, so one must think of", OPTIONS),
        ("The patient takes iron for iron deficiency.", OPTIONS),
        ("Two clues, (a) a low ferritin and (b) a high TIBC, are known.", OPTIONS),
        ("RNA holds adenine (A), guanine (G) and cytosine (C).", OPTIONS),
        ("A. Anemia\nB. Aplastic anemia\nC. Iron deficiency\nD. Hemophilia (type A)", OPTIONS),
        ("Let's evaluate each option:\n\nA. Anemia: the ferritin would be high.\n\nB. Apl", OPTIONS),
        ("Let's evaluate each option:\n\n- **A", OPTIONS),
        ("**A. Anemia**: no.\n**B. Aplastic anemia**: yes.\n**C. Iron deficiency**: no.", OPTIONS),
        ("(A) is wrong because the ferritin is normal. (B)", OPTIONS),
        ("The incorrect one is (A), as the ferritin is normal.", OPTIONS),
        ("There is no doubt that the drug helped.", YES_NO),
        ("There is no direct statement in the abstract, so let us weigh the figures of", YES_NO),
        ("Maybe we should look at the figures first.", YES_NO),
        ("Step 2: count the alleles of each parent and", NUMBERS),
        ("The trial had 3 arms of 4 weeks.", NUMBERS),
        ("I would first take a history.", TEN),
        ("I think that we should wait.", TEN),
        ("Hepatitis B and vitamin C come to mind, and blood group A.", TEN),
        ("E. coli grows in the urine.", TEN),
        # echoes of the options and of the instruction
        ("The answer is\n\nA. Anemia\nB. Aplastic anemia\nC. Iron deficiency", OPTIONS),
        ("Choose the correct answer:\nA. Anemia\nB. Aplastic anemia", OPTIONS),
        ('Think step by step, then end with exactly one option in the form "The answer is X".', OPTIONS),
        ("Answer with one letter: A, B, C or D.", OPTIONS),
        ("Which answer is correct: A, B, C, or D?", OPTIONS),
    ],
)
def test_none_rather_than_a_guess(text, options):
    assert extract_answer(text, options) == Extraction(None, None)


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("The answer is E. coli.", GERMS, "A"),
        ("The answer is A. E. coli.", GERMS, "A"),
        ("The answer is C. difficile.", GERMS, "B"),
        ("The most likely pathogen is B. cereus. So the answer is D.", GERMS, "D"),
        ("The answer is Group A streptococcus.", GERMS, "E"),
        ("The answer is B-cell lymphoma.", CELLS, "C"),
        ("The answer is C: B-cell lymphoma.", CELLS, "C"),
        ("Vitamin A deficiency is the correct answer.", CELLS, "D"),
        ("The answer is C because I worked it out.", TEN, "C"),
        ("The answer is B, I am sure of it.", TEN, "B"),
        ("The answer is I.", TEN, "I"),
        ("The answer is B because a marrow is seldom empty.", OPTIONS, "B"),
        ("The answer is both A and B.", BOTH, "C"),
        ("The answer is none of the above.", BOTH, "D"),
        ("The answer is B, and A is wrong.", BOTH, "B"),
        ("So the answer is yes.", YES_NO, "A"),
        ("Yes, the drug helped.", YES_NO, "A"),
        ("The answer is no, as the interval includes 1.", YES_NO, "B"),
        ("The answer is 3.", NUMBERS, "C"),
        ("The answer is 14004.", NUMBERS, None),
        ("The answer is -3.", NUMBERS, None),
        ("Answer: C", {"A": "C", "B": "D"}, "A"),
        ("The answer is B.", {"A": "B", "B": "A"}, "B"),
        ("The answer is B. Skin, hair, nails.", {"A": "Skin", "B": "Skin, hair and nails"}, "B"),
        ("The answer is 30/200.", {"A": "30/400", "B": "30/200", "C": "(30/200) / (30/400)"}, "B"),
        ("The answer is (30/200) / (30/400).", {"A": "30/400", "B": "30/200", "C": "(30/200) / (30/400)"}, "C"),
    ],
)
def test_options_that_look_like_letters_or_prose(text, options, letter):
    assert read(text, options) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is A. No, wait: the answer is C.", "C"),
        ("The answer is A. Wait, actually it should be B.", "B"),
        ("The answer is A. Correction: B.", "B"),
        ("The answer is A, I mean B.", "B"),
        (r"\boxed{A}, and later \boxed{D}", "D"),
        (r"The answer is A. \boxed{B}", "B"),
        (r"\boxed{A}. On reflection the answer is C.", "C"),
        (r"The clearance is \boxed{C = 3\,\text{mL/min}}. **Answer: D**", "D"),
        ("<answer>A</answer> But then again, the answer is C.", "C"),
        ("The answer is D because (A) and (B) are wrong", "D"),
        ("The answer is B. The answer is (J).", "B"),
        ("The answer is B. Note that A is a tempting distractor.", "B"),
        ("Answer: It is not B, the answer is D", "D"),
        ("The answer is not A but B.", "B"),
        ("The answer is B, not A.", "B"),
        ("The answer is B rather than A.", "B"),
        ("Some would say the answer is A, but the answer is B.", "B"),
        ("Answer seems to be A.\n\nAnswer: B", "B"),
        ("Is the answer A? No. The answer is B.", "B"),
        ("If it were chronic, the answer would be A. As it is, the answer is B.", "B"),
        ("My first answer, A, was wrong. My final answer is B.", "B"),
        ("So the answer is A...\n\nHowever, on review of the smear, B is the better answer.", "B"),
    ],
)
def test_the_last_statement_wins_whatever_its_form(text, letter):
    assert read(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B.\n\nQuestion: Which is a diuretic?\nA. Iron\nAnswer: A", "B"),
        ("B\n\nQ: Which nerve?\nA: C", "B"),
        ("The answer is B.\n\nQ2. Which nerve?\nAnswer: A", "B"),
        ("The answer is B.<|im_end|>\n<|im_start|>user\nThe answer is A.", "B"),
        ("The answer is B. [INST] And now? [/INST] The answer is A.", "B"),
        ("Answer: B\n\nUser: Thanks!\nAssistant: Answer: A", "B"),
        ("The marrow is empty.\n\nQuestion: Which is a diuretic?\nAnswer: A", None),
        ("A: Let's think step by step. The answer is (C).", "C"),
        ("Question: as above.\nA. Anemia\nB. Aplastic anemia\nAnswer: B", "B"),
    ],
)
def test_what_follows_an_invented_question_is_not_read(text, letter):
    assert read(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<think>Perhaps \\boxed{A}? No.</think>\nThe answer is (B).", "B"),
        ("The answer is A? No.</think>B", "B"),
        ("analysisThe answer is A?assistantfinalThe answer is B.", "B"),
    ],
)
def test_thoughts_are_not_read(text, letter):
    assert read(text) == letter


@pytest.mark.parametrize("text", ["<think>The answer is A", "The answer is A. <think>But", "[THINK]\\boxed{A}"])
def test_open_thoughts_leave_no_answer(text):
    assert extract_answer(text, OPTIONS) == Extraction(None, None, is_open=True)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B", "B"),
        ("B", "B"),
        ("(B)", "B"),
        ("B. Aplastic ane", None),
        ("Aplastic anemia", "B"),
        (r"So \boxed{B}. This", "B"),
        ("All lines are low. Therefore, the most likely diagnosis is aplastic anemia.", None),
        ("All lines are low. So B.", None),
        ("B. Aplastic anemia\n\nThe marrow is", None),
        ("The marrow is empty (B", None),
    ],
)
def test_a_truncated_reply_must_state_its_answer(text, letter):
    assert read(text, truncated=True) == letter


@pytest.mark.parametrize(
    "text",
    [
        '{"step_by_step_thinking": "The answer is A. Yet the marrow',
        '{"step_by_step_thinking": "Therefore, the most likely diagnosis is aplastic anemia.',
        '{"step_by_step_thinking": "The marrow is empty.", "answer_choice": "',
        '{"step_by_step_thinking": "The marrow is empty.", "answer_choice": "A',
        "The ferritin is low. Aplastic anemia is not",
        "The ferritin is low. This is the picture of iron deficiency",
        "All lines are low. A",
        "We look at the options in turn.\n\nB. Aplastic anemia",
    ],
)
def test_a_reply_cut_in_the_middle_has_no_answer(text):
    """Also where nothing says that it was cut: the text shows it."""
    assert read(text) is None
    assert read(text, truncated=True) is None


def test_equal_option_texts_name_no_letter():
    options = {"A": "36 hours", "B": "36 hours", "C": "72 hours"}
    assert read("36 hours", options) is None
    assert read("72 hours", options) == "C"
    assert read("The answer is (B).", options) == "B"


@pytest.mark.parametrize(
    "filler",
    [" ", "\n", " \n", "\t", "(", "( ", "* ", ":", " :", "answer is ", r"\boxed{", "**A. ", "answer ", '"answer": ']
    + [
        "<answer>",
        "答案",
        "选A",
        "{",
        "A, ",
        "A and ",
        "if ",
        "\\text{",
        "making B the ",
        "- A. x\n",
        "<think>",
        "a",
        "_",
    ],
)
def test_degenerate_replies_take_linear_time(filler):
    """The reply is so long that extraction in more than linear time would not finish."""
    text = "</think>The answer is" + filler * (32_000 // len(filler)) + "</think>\nThe answer is (D)."
    assert read(text) == "D"


@given(st.text(max_size=300), st.integers(2, len(LETTERS)), st.booleans())
def test_any_text_gives_an_offered_letter_or_none(text, count, truncated):
    options = {letter: f"option {letter}" for letter in LETTERS[:count]}
    extraction = extract_answer(text, options, truncated)
    assert extraction.letter is None or extraction.letter in options
    assert (extraction.letter is None) == (extraction.method is None)


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<[{◁qQ"), max_size=100),
    st.sampled_from("ABCD"),
    st.sampled_from(["The answer is ({}).", "The answer is {}", "Answer: {}", "the answer is **{}**"]),
)
def test_a_final_statement_is_found_after_any_reasoning(reasoning, letter, form):
    assert read(f"{reasoning}.\n{form.format(letter)}") == letter


@given(st.text("\\boxedanswer is:()[]*AaBb.\n ", max_size=60), st.booleans())
def test_text_made_of_parts_of_the_forms(text, truncated):
    assert read(text, {"A": "x1", "B": "x2"}, truncated) in (None, "A", "B")


@given(st.dictionaries(st.sampled_from(LETTERS), st.text(max_size=20), min_size=2), st.text(max_size=60))
def test_any_options_can_be_read(options, text):
    assert read(text, options) in (None, *options)


def test_grade():
    assert grade("The answer is (B).", OPTIONS, "B") == 1.0
    assert grade("The answer is (B).", OPTIONS, "C") == 0.0
    assert grade("no idea", OPTIONS, "B") == 0.0
    assert grade("All lines are low. So B.", OPTIONS, "B") == 1.0
    assert grade("All lines are low. So B.", OPTIONS, "B", truncated=True) == 0.0


@pytest.mark.parametrize("preset", PRESETS)
def test_the_prompt_itself_answers_nothing(preset):
    question = Question.make("Which?", list(OPTIONS.values()), source="test")
    instruction = load_prompt_form(preset).fill(question.stem, "", "A, B, C or D")
    assert extract_answer(instruction, OPTIONS).letter is None


@pytest.mark.parametrize(
    ("text", "letter"), [("Answer: maybe not.", None), ("Answer: maybe", "C"), ("Answer: no", "B")]
)
def test_a_text_that_is_denied_behind_is_none(text, letter):
    assert extract_answer(text, {"A": "yes", "B": "no", "C": "maybe"}).letter == letter
