"""Readers of lm-evaluation-harness and inspect_ai, run as a program by the Python that has these libraries.

It reads a JSON list of {"text", "options"} from stdin and writes {reader: {"version", "letters"}} to stdout, or
{reader: {"missing": reason}}. It imports nothing of this package, so that any Python can run it.
"""

import json
import sys
from importlib.metadata import version

# The filter "flexible-extract" of the harness's task mmlu_flan_cot_zeroshot.
FLEXIBLE = {"group_select": -1, "ignore_case": True, "ignore_punctuation": True, "regex_pattern": "(\\([A-Z]\\))"}


def read_with_lm_eval(replies):
    """Return the version and the letter that the harness's filter finds in each reply, or None."""
    from lm_eval.filters.extraction import MultiChoiceRegexFilter

    docs = [{"choices": list(reply["options"].values())} for reply in replies]
    found = MultiChoiceRegexFilter(**FLEXIBLE).apply([[reply["text"]] for reply in replies], docs)
    letters = [text.strip("()") for (text,) in found]
    return version("lm_eval"), [letter if len(letter) == 1 else None for letter in letters]


def read_with_inspect(replies):
    """Return the version and the letter that inspect_ai's choice scorer scores in each reply, or None."""
    from inspect_ai.model import ChatMessageUser, ModelOutput
    from inspect_ai.solver import TaskState
    from inspect_ai.solver._multiple_choice import parse_answers

    letters = []
    for reply in replies:
        state = TaskState(
            model="mockllm/model",
            sample_id=1,
            epoch=1,
            input="?",
            messages=[ChatMessageUser(content="?")],
            choices=list(reply["options"].values()),
            output=ModelOutput.from_content("mockllm/model", reply["text"]),
        )
        found = parse_answers(state, multiple_correct=False)
        letters.append(found.pop() if len(found) == 1 else None)
    return version("inspect_ai"), letters


def main():
    """Read the replies with each library that is there."""
    replies = json.load(sys.stdin)
    results = {}
    for name, read in (("lm_eval", read_with_lm_eval), ("inspect_ai", read_with_inspect)):
        try:
            number, letters = read(replies)
            results[name] = {"version": number, "letters": letters}
        except ImportError as error:
            results[name] = {"missing": str(error)}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
