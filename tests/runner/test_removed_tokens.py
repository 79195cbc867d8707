"""What a report says of tokens that a prune stage removed."""

from compressor.report.outline import pruned, scored
from compressor.runner.pruned import pruning

COUNTED = {
    "stage": "words",
    "kind": "vocabulary",
    "chosen": {"kept": 100, "removed": 300, "of": 400},
    "because": "90 of 400 tokens stand in the 20 rows of train and the pool",
    "cost": {"parameters": 4_800_000, "bytes": 19_200_000, "held_out": None},
}
REFUSED = {
    "stage": "words",
    "kind": "backtrack",
    "chosen": {"vocabulary": 400},
    "because": "the model without the unseen tokens broke the gate: accuracy fell",
}
REMOVED = (
    "300 of 400 tokens removed, 4800000 parameters or 19.20 MB in fp32: 90 of 400 tokens stand in the 20 rows of train "
    "and the pool"
)


def test_a_stage_of_tokens_alone_says_how_many_went_and_shows_no_layers():
    found = pruning("words", [COUNTED])
    assert found == {"stage": "words", "layers": [], "removed_layers": [], "because": REMOVED}
    section = pruned(found, 0)
    assert (section.title, section.lead, section.rows, section.empty) == ("Pruned: words", REMOVED, (), False)
    assert scored(found, 0).empty
    assert pruning("words", []) is None


def test_tokens_stand_behind_what_is_said_of_the_layers():
    scores = [{"layer": 0, "heads": [0.1, 0.2], "score": 0.3}]
    layers = {
        "layers": [{"layer": 0, "heads": [1], "ffn": 8}],
        "removed_layers": [],
        "before": [{"heads": 2, "ffn": 9}],
    }
    cut = {"stage": "words", "kind": "cut", "chosen": {}, "because": "least score", "candidates": scores}
    last = {"stage": "words", "kind": "pruned", "chosen": layers, "because": "macs 5 of 9 remain"}
    assert pruning("words", [cut, COUNTED, last])["because"].endswith(f"no whole layer was to be removed; {REMOVED}")
    kept = pruning("words", [cut, COUNTED, REFUSED, last])["because"]
    assert kept.endswith(f"; all 400 tokens were kept, as {REFUSED['because']}")
