"""How the votes on a question become a label, one rule a file; `voting.rule` names the rule."""
