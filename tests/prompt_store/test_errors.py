import re

import prompt_store.errors as errors


def test_the_tree_with_its_statuses_and_codes_is_as_documented() -> None:
    documented = re.findall(r"(\w+) +(\d{3}) (\w+)\n", errors.__doc__ or "")
    classes = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and each.__module__ == errors.__name__
    ]
    assert sorted(documented) == sorted((each.__name__, str(each.status), each.code) for each in classes)
    assert len(classes) == 16
    assert len({each.code for each in classes}) == len(classes)


def test_every_documented_child_is_a_subclass_of_its_parent() -> None:
    path: list[type] = []
    for indent, name in re.findall(r"^    ([│ ├└─]*)(\w+) +\d{3}", errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 4
        child = getattr(errors, name)
        path[depth:] = [child]
        assert issubclass(child, path[depth - 1] if depth else Exception)
    assert len(path) == 2
