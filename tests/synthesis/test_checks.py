import json
from collections import Counter

import pytest

from medssr_dist.config.synthesis import Checks
from medssr_dist.data.records import Provenance, Question, Rejected
from medssr_dist.synthesis.checks import Screen, TeacherReply, flaws
from medssr_dist.synthesis.checks.reply_parts import Draft

STEM = (
    "A 45-year-old man comes to the physician because of a painful big toe for two days. His temperature is 38 degrees "
    "and his pulse is 90 per minute. Which of the following is the most likely diagnosis?"
)
OPTIONS = ["Gout", "Septic arthritis", "Pseudogout", "Cellulitis"]
SEED = Question.make("What drug treats an attack of gout in old age?", ["Colchicine", "Heparin"], source="t")
PASSAGES = {"P1": "Alkaptonuria is a rare disease. Very frequent features are dark urine; ochronosis; arthralgia."}
OFF = Checks.model_validate(dict.fromkeys(Checks.model_fields, 0))


def screen(checks=OFF, seeds=(SEED,), benchmarks=(), random_seed=42) -> Screen:
    return Screen(
        checks, random_seed, seeds, benchmarks, PASSAGES.__getitem__, {"Alkaptonuria": ["Black urine disease"]}
    )


def on(**checks) -> Checks:
    """Return settings with only these checks on."""
    return OFF.model_copy(update=checks)


def reply(stem=STEM, options=OPTIONS) -> str:
    return json.dumps({"question": stem, "options": list(options)})


def provenance(index=0, entity=None, passages=(), seeds=(SEED,)) -> Provenance:
    return Provenance(
        index=index,
        prompt_hash="h",
        seed_ids=tuple(seed.id for seed in seeds),
        rho=0.2,
        entity=entity,
        passage_ids=passages,
        teacher="m",
        random_seed=42,
        commit="c",
    )


def judge_one(checks, text, about=None, **inputs):
    (outcome,) = screen(checks, **inputs).judge([TeacherReply(text, about or provenance())])
    return outcome


def reason(checks, text, about=None, **inputs) -> str | None:
    outcome = judge_one(checks, text, about, **inputs)
    assert isinstance(outcome, Question) or outcome.detail
    return outcome.reason if isinstance(outcome, Rejected) else None


def test_a_sound_question_passes_all_checks():
    question = judge_one(Checks(longest_option=2.5, repeated_key_word=True), reply())
    assert isinstance(question, Question)
    assert question.stem == STEM and set(question.options.values()) == set(OPTIONS)
    assert (question.source, question.rare, question.truth) == ("synthetic", False, None)


FLAWS = [
    ("min_words", {"min_words": 5}, reply("Cause of this gout?"), reply("Cause of this gout attack?")),
    ("max_words", {"max_words": 20}, reply(" ".join(STEM.split()[:21])), reply(" ".join(STEM.split()[:20]))),
    (
        "all_or_none",
        {"all_or_none": True},
        reply(options=["Gout", "Lupus", "All of the above"]),
        reply(options=["Gout", "Lupus", "All four limbs", "None", "Vitamin A and D", "Both kidneys"]),
    ),
    (
        "negative_lead_in",
        {"negative_lead_in": True},
        reply("He has gout. Which of the following is NOT a risk factor?"),
        reply("He does not drink. Which best explains why the drug did not work?"),
    ),
    (
        "missing_figure",
        {"missing_figure": True},
        reply(STEM + " An X-ray is shown below."),
        reply("An X-ray shows punched-out erosions. Laboratory studies are shown below: urate 9 mg/dL. What is it?"),
    ),
    (
        "longest_option",
        {"longest_option": 2.5},
        reply(options=["Gout", "Lupus", "Deposition of monosodium urate crystals in the joint"]),
        reply(options=["CT", "MRI", "Radiography of the foot"]),
    ),
    (
        "repeated_key_word",
        {"repeated_key_word": True},
        reply("A pulmonary embolus is suspected.", ["Pulmonary angiography", "Sonography"]),
        reply("A pulmonary embolus is suspected.", ["Pulmonary angiography", "Pulmonary surgery"]),
    ),
]


@pytest.mark.parametrize(("name", "checks", "hit", "near_miss"), FLAWS, ids=[flaw[0] for flaw in FLAWS])
def test_each_flaw_has_a_hit_a_near_miss_and_an_off_switch(name, checks, hit, near_miss):
    assert reason(on(**checks), hit) == name
    assert reason(on(**checks), near_miss) is None
    assert reason(OFF, hit) is None


@pytest.mark.parametrize(
    "option",
    [
        "none of the above.",
        "Both A and B",
        "A and C",
        "1 and 2",
        "Neither B nor C",
        "All of these",
        "A, B, and C",
        "Two of the options",
    ],
)
def test_options_made_of_others(option):
    assert reason(on(all_or_none=True), reply(options=["Gout", "Lupus", option])) == "all_or_none"


@pytest.mark.parametrize(
    "lead_in",
    [
        "All are risk factors except:",
        "Which of these does not cause gout?",
        "Which is least likely?",
        "Which statement is false?",
        "What should not be given next?",
    ],
)
def test_negative_lead_ins(lead_in):
    assert reason(on(negative_lead_in=True), reply(f"He has gout. {lead_in}")) == "negative_lead_in"


@pytest.mark.parametrize(
    "text",
    [
        "See image.",
        "The findings are shown in Figure 2.",
        "An accompanying photograph was taken.",
        "What does the arrow indicate?",
        "The results are in the following table.",
        "Which lead is shown below?",
        "A photograph of his right hand is shown.",
        "An x-ray of the chest in supine position is shown;",
        "A picture of the foot is given below.",
        "The ECG in lead II is displayed here.",
        "The results are shown below. Which drug lowers them by 50%?",
        "Table 1 lists the rates.",
        "The laboratory results are shown below.",
    ],
)
def test_missing_figures(text):
    assert reason(on(missing_figure=True), reply(f"A man has gout. {text}")) == "missing_figure"


@pytest.mark.parametrize(
    "text",
    [
        "A biopsy shows urate crystals.",
        "He lies on the examination table.",
        "An image-guided biopsy is done.",
        "He has pictured this before.",
        "His figure is slim.",
        "The photograph album upset her.",
        "His laboratory results are shown below. Hemoglobin is 8.4 g/dL and ferritin is 8 ng/mL.",
        "The results are shown below: hemoglobin 8.4 g/dL.",
        "Laboratory studies are as shown below.\n\nSerum:\nNa+: 139 mEq/L\nK+: 3.7 mEq/L\n",
        "The results are given in the table below:\nTest | Disease | None\nPositive | 45 | 15\nNegative | 5 | 35\n",
        "A biopsy is shown to be free of cancer.",
        "Which of the following tables?",
    ],
)
def test_figures_that_are_not_missing(text):
    assert reason(on(missing_figure=True), reply(f"A man has gout. {text} What now?")) is None


@pytest.mark.parametrize(
    ("stem", "options", "given_away"),
    [
        ("A man with alkaptonuria has dark urine. Diagnosis?", ["Alkaptonuria", "Gout"], True),
        ("The diagnosis of ciliary dyskinesia, primary, 26 is made.", ["Primary ciliary dyskinesia", "Gout"], True),
        ("A man with alkaptonuria has dark urine. Which gene?", ["HGD", "CFTR"], False),
        ("A man has dark urine. Diagnosis?", ["Alkaptonuria", "Gout"], False),
        ("A man with gout has dark urine. Diagnosis?", ["Alkaptonuria", "Gout"], False),
        ("A man with alkapto\u00adnuria has dark urine. Diagnosis?", ["Alkaptonuria", "Gout"], True),
        ("A man with \uff21lkaptonuria has dark urine. Diagnosis?", ["Alkap\u200btonuria", "Gout"], True),
        ("His black urine disease is treated. Diagnosis?", ["Alkaptonuria", "Gout"], True),
        ("His alkaptonuria is treated. Diagnosis?", ["Black urine disease", "Gout"], True),
        ("His alkaptonuria is treated. Diagnosis?", ["Ochronosis (alkaptonuria)", "Gout"], True),
        ("His blackish urine is a disease. Diagnosis?", ["Alkaptonuria", "Gout"], False),
    ],
)
def test_entity_given_away(stem, options, given_away):
    entity = "Ciliary dyskinesia, primary, 26" if "ciliary" in stem else "Alkaptonuria"
    outcome = reason(on(entity_given_away=True), reply(stem, options), provenance(entity=entity))
    assert outcome == ("entity_given_away" if given_away else None)
    assert reason(OFF, reply(stem, options), provenance(entity=entity)) is None


SJOGREN, DUCHENNE = "Sj\u00f6gren-Larsson syndrome", "Muscular dystrophy, Duchenne type"
TYPES = ["Gaucher disease type 1", "Gaucher disease type 3"]


@pytest.mark.parametrize(
    ("entity", "stem", "options", "given_away"),
    [
        ("Gaucher disease", "Known to have Gaucher's disease, he is ill.", ["Gaucher disease"], True),
        ("Gaucher disease", "Known to have Gaucher\u2019s disease, he is ill.", TYPES[:1], True),
        ("Gaucher disease type I", "He has Gaucher disease. Type?", TYPES[:1], True),
        ("Gaucher disease type I", "He has Gaucher disease. Type?", TYPES, False),
        ("Gaucher disease", "He has Gaucher cells. Diagnosis?", ["Gaucher disease"], False),
        (DUCHENNE, "He has Duchenne muscular dystrophy.", [DUCHENNE], True),
        ("Duchenne muscular dystrophy", f"He has {DUCHENNE.lower()}.", ["Duchenne muscular dystrophy"], True),
        ("Duchenne muscular dystrophy", "He has muscular weakness.", [DUCHENNE], False),
        (SJOGREN, "He has Sjogren Larsson syndrome.", [SJOGREN], True),
        ("\u03b2-thalassemia", "He has beta thalassaemia.", ["Beta-thalassemia"], True),
        ("Hodgkin lymphoma", "He has a non-Hodgkin lymphoma.", ["Hodgkin lymphoma"], False),
    ],
)
def test_spellings_that_give_an_entity_away(entity, stem, options, given_away):
    outcome = reason(
        on(entity_given_away=True), reply(f"A boy is ill. {stem}", [*options, "Gout"]), provenance(entity=entity)
    )
    assert outcome == ("entity_given_away" if given_away else None)


@pytest.mark.parametrize("finish_reason", ["length", "content_filter"])
def test_why_a_reply_ended_reaches_the_parser(finish_reason):
    (outcome,) = screen().judge([TeacherReply(reply(), provenance(3), finish_reason)])
    assert (outcome.reason, outcome.index) == ({"length": "truncated"}.get(finish_reason, "refused"), 3)


def test_hidden_characters_hide_no_copy_and_leave_the_question():
    item = Question.make(STEM, OPTIONS, source="bench")
    hidden = STEM.replace("physician", "phy\u00adsi\u200bcian").replace("painful", "\u2060pain\ufeffful")
    assert reason(on(decontamination=0.9), reply(hidden), benchmarks=[item]) == "decontamination"
    assert reason(OFF, reply(hidden), benchmarks=[item]) == "duplicate"
    assert reason(on(near_duplicate=0.7), reply(hidden + " So?"), benchmarks=[item]) == "near_duplicate"
    question = judge_one(OFF, reply(hidden))
    assert question.stem == STEM and question == judge_one(OFF, reply())


PIECES = (
    "shown below ",
    "table below ",
    "1\n",
    "an x-ray ",
    "photograph of a ",
    "is shown ",
    "which ",
    "not ",
    "all of ",
    "A, B, ",
)


@pytest.mark.parametrize("piece", [*PIECES, "gaucher ", "gaucher disease, ", "(", "\u00ad", "\u00e9", " | "])
def test_degenerate_questions_take_linear_time(piece):
    """The texts are so long that more than linear time would not finish."""
    text = f"What is it? {piece * (100_000 // len(piece))}"
    draft, about = Draft(text, (text, "Gaucher disease", "Gout")), provenance(entity="Gaucher disease")
    for check in (flaws.missing_figure, flaws.negative_lead_in, flaws.all_or_none, flaws.entity_given_away):
        assert check(draft, about) is None or check(draft, about).reason == check.__name__


def test_grounding_counts_content_words_of_the_passages_alone():
    about = provenance(entity="Alkaptonuria", passages=("P1",))
    grounded = reply("A man has dark urine and ochronosis. What treats it?", ["Nitisinone", "Colchicine"])
    loose = reply("A rare disease, alkaptonuria, has dark features. Heparin?", ["Nitisinone", "Colchicine"])
    assert reason(on(grounding=2), grounded, about) is None
    assert reason(on(grounding=4), grounded, about) == "grounding"
    assert "(dark, features)" in judge_one(on(grounding=3), loose, about).detail
    assert reason(on(grounding=2), loose) is None  # a common question has no passages
    assert reason(on(grounding=1), grounded, provenance(entity="Alkaptonuria")) == "grounding"
    assert reason(OFF, loose, about) is None


def test_duplicates_are_rejected_in_any_order_of_options():
    texts = [reply(), reply(options=OPTIONS[::-1]), reply(STEM.upper())]
    outcomes = list(screen().judge(TeacherReply(text, provenance(index)) for index, text in enumerate(texts)))
    assert [getattr(outcome, "reason", None) for outcome in outcomes] == [None, "duplicate", "duplicate"]
    assert reason(OFF, reply(SEED.stem, SEED.options.values())) == "duplicate"


def test_near_duplicates_are_rejected_with_the_question_named():
    held = Question.make(STEM, OPTIONS, source="set", source_id="s7")
    near, far = reply(STEM.replace("two days", "three days")), reply(STEM.replace("big toe", "knee") + " Why this one?")
    check = on(near_duplicate=0.7)
    for inputs in ({"seeds": [SEED, held]}, {"benchmarks": [held]}):
        rejected = judge_one(check, near, **inputs)
        assert rejected.reason == "near_duplicate" and rejected.detail.endswith(" to set:s7")
        assert reason(OFF, near, **inputs) is None
    replies = [TeacherReply(text, provenance(index)) for index, text in enumerate((reply(), near, far), start=5)]
    first, second, third = screen(check).judge(replies)
    assert isinstance(first, Question) and isinstance(third, Question)
    assert second.reason == "near_duplicate" and second.detail.endswith(" to the question of request 5")


def test_decontamination_names_the_item_and_the_coverage():
    item = Question.make(STEM, OPTIONS, source="bench", source_id="b1")
    half = reply(" ".join(STEM.split()[:25]) + " What should be done first in this man with such a joint?")
    rejected = judge_one(on(decontamination=0.5), half, benchmarks=[item])
    assert rejected.reason == "decontamination" and "bench:b1 contains 0.5" in rejected.detail
    assert reason(on(decontamination=0.6), half, benchmarks=[item]) is None
    assert reason(OFF, half, benchmarks=[item]) is None
    short = Question.make("Cause of scurvy?", ["Vitamin C", "Iron"], source="bench")
    assert reason(on(decontamination=1.0), reply("Cause of SCURVY?", ["Iron", "Vitamin C"]), benchmarks=[short])


def test_questions_are_remembered_only_as_they_are_taken():
    judge = screen(on(near_duplicate=0.8))
    other = reply("Quite another question about gout?")
    first = judge.judge([TeacherReply(reply(), provenance(0)), TeacherReply(other, provenance(1))])
    assert isinstance(next(first), Question)
    assert isinstance(next(judge.judge([TeacherReply(other, provenance(1))])), Question)


def test_many_replies_are_judged_in_order():
    texts = [reply(f"Question {index} asks for number {index * 7}?") if index % 3 else "?" for index in range(600)]
    outcomes = list(screen(Checks()).judge(TeacherReply(text, provenance(index)) for index, text in enumerate(texts)))
    assert [isinstance(outcome, Question) for outcome in outcomes] == [bool(index % 3) for index in range(600)]
    indices = [one.provenance.index if isinstance(one, Question) else one.index for one in outcomes]
    assert indices == list(range(600))


def test_options_are_shuffled_by_the_recorded_permutation():
    places = Counter()
    for index in range(400):
        question = judge_one(OFF, reply(), provenance(index))
        order = question.provenance.permutation
        assert list(question.options.values()) == [OPTIONS[place] for place in order]
        places[order.index(0)] += 1
    assert min(places.values()) > 70 and set(places) == {0, 1, 2, 3}
    again = judge_one(OFF, reply(), provenance(399))
    assert again == question and screen(random_seed=43)
    assert (
        len({judge_one(OFF, reply(), provenance(5), random_seed=one).provenance.permutation for one in range(20)}) > 5
    )


def test_options_that_speak_of_others_stay_in_place():
    options = ["Gout", "Lupus", "Both A and B"]
    for index in range(10):
        question = judge_one(OFF, reply(options=options), provenance(index))
        assert question.provenance.permutation == (0, 1, 2) and list(question.options.values()) == options


def test_rejections_keep_the_reply_and_the_index():
    rejected = judge_one(Checks(), "no question", provenance(9))
    assert (rejected.reason, rejected.reply, rejected.index) == ("not_parsable", "no question", 9)
