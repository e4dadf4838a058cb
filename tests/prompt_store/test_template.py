import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_store import (
    InvalidTemplate,
    Literal,
    MaskSlot,
    PairSlot,
    Part,
    SoftSlot,
    StartSlot,
    Template,
    TextSlot,
    parse_template,
)

PARTS: st.SearchStrategy[Part] = st.one_of(
    st.builds(Literal, st.text(min_size=1)),
    st.builds(Literal, st.text('{}\\" \n:softext_', min_size=1)),
    st.just(MaskSlot()),
    st.builds(SoftSlot, st.integers(1, 10_000)),
    st.builds(SoftSlot, st.none(), st.text(min_size=1)),
    st.builds(SoftSlot, st.none(), st.text('{}\\" a', min_size=1)),
)


@st.composite
def templates(draw: st.DrawFn) -> Template:
    parts = [*draw(st.lists(PARTS, max_size=6)), TextSlot()]
    parts += draw(st.sampled_from([[], [PairSlot()], [StartSlot()], [PairSlot(), StartSlot()]]))
    merged: list[Part] = []
    for part in draw(st.permutations(parts)):
        # Two literals side by side are one to any reader.
        if merged and isinstance(part, Literal) and isinstance(merged[-1], Literal):
            part = Literal(merged.pop().text + part.text)
        merged.append(part)
    return Template(tuple(merged))


@given(templates())
def test_what_is_written_is_what_is_read(template: Template) -> None:
    assert parse_template(str(template)) == template


@given(st.text('{}":\\ softextpairmask_0123', max_size=40))
def test_any_source_is_read_back_the_same_or_refused(source: str) -> None:
    try:
        template = parse_template(source)
    except InvalidTemplate:
        return
    assert str(template) == source


def test_every_kind_of_part() -> None:
    template = parse_template(
        '{soft:20}{start} {text}\n{text_pair} It was {mask}. {soft:"a \\"b\\" \\\\"} {{x}}'
    )
    assert template.parts == (
        SoftSlot(20),
        StartSlot(),
        Literal(" "),
        TextSlot(),
        Literal("\n"),
        PairSlot(),
        Literal(" It was "),
        MaskSlot(),
        Literal(". "),
        SoftSlot(None, 'a "b" \\'),
        Literal(" {x}"),
    )
    assert (template.has_pair, template.has_mask, template.num_masks) == (True, True, 1)
    plain = parse_template("{text}")
    assert (plain.has_pair, plain.has_mask, plain.num_masks, plain.num_soft) == (False, False, 0, 0)


def test_soft_slots_get_their_numbers_from_left_to_right() -> None:
    template = parse_template('{soft:"a"}{text}{soft:5}{soft:"b c"}')
    assert not template.is_resolved
    with pytest.raises(InvalidTemplate, match="no number"):
        _ = template.num_soft
    resolved = template.resolve([1, 2])
    assert str(resolved) == "{soft:1}{text}{soft:5}{soft:2}"
    assert (resolved.is_resolved, resolved.num_soft) == (True, 8)
    assert resolved.resolve([]) == resolved


@pytest.mark.parametrize("counts", [[], [1], [1, 2, 3], [0, 1], [1, -1], [1, 10_001]])
def test_resolve_refuses_other_numbers(counts: list[int]) -> None:
    with pytest.raises(InvalidTemplate, match="expected"):
        parse_template('{soft:"a"}{text}{soft:"b"}').resolve(counts)


@pytest.mark.parametrize(
    ("source", "column"),
    [
        ("", 1),
        ("no slot", 8),
        ("{{text}}", 9),
        ("{text", 1),
        ("text}", 5),
        ("{text}}", 7),
        ("{text} {text}", 8),
        ("{text}{text_pair}{text_pair}", 18),
        ("{start}{text}{start}", 14),
        ("{text} {}", 8),
        ("{text} {Text}", 8),
        ("{text} { mask }", 8),
        ("{text} {mask:1}", 8),
        ("{text.__class__}", 1),
        ("{text!r}", 1),
        ("{0}", 1),
        ("{soft}{text}", 1),
        ("{soft:}{text}", 1),
        ("{soft:0}{text}", 1),
        ("{soft:01}{text}", 1),
        ("{soft:-1}{text}", 1),
        ("{soft:1.5}{text}", 1),
        ("{soft:\u0661}{text}", 1),
        ("{soft:10001}{text}", 1),
        ("{soft:99999999999}{text}", 1),
        ('{soft:""}{text}', 1),
        ('{soft:"a}{text}', 1),
        ('{soft:"a\\n"}{text}', 1),
        ("{soft:'a'}{text}", 1),
        ("ab{{c}}{ {text}", 8),
    ],
)
def test_an_error_names_its_column(source: str, column: int) -> None:
    with pytest.raises(InvalidTemplate, match=rf"column {column}: "):
        parse_template(source)


def test_a_long_template_is_read_in_linear_time() -> None:
    # Exponential or quadratic matching would never end here.
    with pytest.raises(InvalidTemplate):
        parse_template("{{" * 200_000 + '{soft:"' + "a" * 200_000)


def test_leading_virtual_tokens_are_those_before_everything_else() -> None:
    assert parse_template("{soft:2}{soft:3}{text}{soft:4}").num_leading_soft == 5
    assert parse_template("{soft:3} {soft:2} {text}").num_leading_soft == 5
    assert parse_template("It: {soft:2}{text}").num_leading_soft == 0
    assert parse_template("{text} {soft:3}").num_leading_soft == 0
