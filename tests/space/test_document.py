import pytest

from space import ModelSpec, ToolkitError
from space.document import Document, parse

SPEC = "channels: 48\ndepths: [1, 1, 2, 1, 1]\nheads: 2\n"


def problem(text):
    with pytest.raises(ToolkitError) as caught:
        document = Document(text, "spec.yaml")
        parse(ModelSpec, document.data, document)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_document_is_read():
    assert parse(ModelSpec, Document(SPEC, "spec.yaml").data).channels == 48


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPEC + "attention:\n  simlarity: dot\n", "spec.yaml:5: unknown key 'attention.simlarity'; did you mean 'similarity'?"),
        (
            SPEC + "attention: {similarity: dott}\n",
            "spec.yaml:4: attention.similarity: 'dott' is not one of 'dot' or 'cosine'; did you mean 'dot'?",
        ),
        (
            SPEC.replace("48", "many"),
            "spec.yaml:1: channels: input should be a valid integer, unable to parse string as an integer, not 'many'",
        ),
        (SPEC + "heads: 4\n", "spec.yaml:4: key 'heads' appears twice (first in line 3); remove one"),
        (SPEC.replace("heads: 2\n", ""), "spec.yaml: 'heads' is missing"),
        (SPEC + "input_size: 30\n", "spec.yaml:4: input_size 30 is not divisible by 8"),
        (SPEC + "ends: double\n", "spec.yaml:4: ends is now called stem; rename it"),
        (SPEC + "attention: {factor: 3}\n", "spec.yaml:4: attention.factor: 3 is not one of 1, 2 or 4; the nearest is 2"),
        (
            SPEC + "attention: {factor: [2, 2, 3, 2, 2]}\n",
            "spec.yaml:4: attention.factor.2: 3 is not one of 1, 2 or 4; the nearest",
        ),
        ("channels: [1\n", "spec.yaml: not valid YAML at line 2"),
        ("- 1\n", "spec.yaml: expected a mapping"),
        ("channels: {{ x }}\n", "spec.yaml: "),
        ("channels: 2024-13-45\n", "spec.yaml: holds a value that is not plain data (month must be in 1..12)"),
        ("channels: !!python/name:os.system\n", "spec.yaml: not valid YAML at line 1"),
        ("channels: &a [*a]\n", "spec.yaml: "),
    ],
)
def test_mistakes_are_told_in_one_sentence_with_their_line(text, message):
    assert problem(text).startswith(message)
