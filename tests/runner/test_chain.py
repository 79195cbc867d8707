"""What each stage reads, and what it takes from the stages before."""

from compressor.runner.chain import gate_references, reads_of
from compressor.stages.distill import Distill
from compressor.stages.prune import Prune
from compressor.stages.quantize import Quantize
from compressor.stages.teacher import Teacher

TEACHER = Teacher(model="./bert")


def distill(name: str, temperature: float, **more) -> Distill:
    return Distill.model_validate({"id": name, "match": [{"of": "logits", "temperature": temperature}], **more})


def test_a_stage_reads_the_one_before_or_the_one_it_names():
    assert reads_of(Quantize(id="int8"), "slim") == {"model": "slim"}
    assert reads_of(Quantize.model_validate({"id": "int8", "from": "student"}), "slim") == {"model": "student"}
    assert reads_of(distill("student", 1.0), "teacher") == {"teacher": "teacher"}
    assert reads_of(distill("second", 1.0, teacher="first"), "first") == {"teacher": "first"}
    assert reads_of(TEACHER, None) == {}


def test_a_gate_compares_with_the_stages_input_unless_it_names_another():
    gate = {"accuracy": {"drop": "<= 1pp"}, "macro_f1": {"drop": "<= 1pp", "vs": "teacher"}, "matthews": ">= 50pp"}
    stage = Quantize.model_validate({"id": "int8", "gate": gate})
    assert gate_references(stage, "slim") == {"accuracy": "slim", "macro_f1": "teacher"}


def test_recovery_takes_terms_and_teacher_of_the_distill_stage_that_its_input_comes_from():
    earlier = [TEACHER, distill("a", 2.0), distill("b", 3.0, teacher="a")]
    plain = Prune.model_validate({"id": "slim", "recover": {}}).filled(earlier)
    assert (plain.recover.match[0].temperature, plain.teacher) == (3.0, "a")
    named = Prune.model_validate({"id": "slim", "from": "a", "recover": {}}).filled(earlier)
    assert (named.recover.match[0].temperature, named.teacher) == (2.0, "teacher")
    further = Prune.model_validate({"id": "slimmer", "recover": {}}).filled([*earlier, named])
    assert further.recover.match[0].temperature == 2.0
    own = {"id": "slim", "teacher": "b", "recover": {"match": [{"of": "labels"}]}}
    kept = Prune.model_validate(own).filled(earlier)
    assert (kept.recover.match[0].of, kept.teacher) == ("labels", "b")


def test_without_recovery_nothing_is_taken():
    stage = Prune(id="slim")
    assert stage.filled([TEACHER, distill("a", 2.0)]) is stage
    assert reads_of(stage, "a") == {"model": "a"}
