"""Every public name is documented: its arguments, and the shapes and units of tensors."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch_geometric.data

import e2former_pyg

INDEX = Path(__file__).parents[1] / "docs" / "api" / "index.rst"
UNITS = {
    "pos": "Å",
    "cutoff": "Å",
    "cell": "Å",
    "edge_shift": "Å",
    "length": "Å",
    "energy": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å³",
}
# Takes the tensors of any model and loss.
ANY_SHAPES = {"e2former_pyg.tracing.trace_gradients"}
# The unit is an argument there, and the data are in whatever unit it names.
UNIT_CONVERSIONS = {"e2former_pyg.transforms.ConvertUnits"}


def reference_modules() -> list[str]:
    """The modules that the API reference lists."""
    return re.findall(r"^   (e2former_pyg\.\w+)$", INDEX.read_text(encoding="utf-8"), re.M)


MISSING: dict[str, str] = {}
"""The modules that cannot be imported, and the optional package that each lacks."""


def public_names() -> Iterator[tuple[str, Any]]:
    for module_name in reference_modules():
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            package = getattr(error.__cause__ or error, "name", None)
            # A dot: the package is there, but not what is imported from it.
            if package is None or "." in package or package == "e2former_pyg":
                raise
            MISSING[module_name] = package
            continue
        own = [n for n in vars(module) if not n.startswith("_")]
        own = [n for n in own if getattr(vars(module)[n], "__module__", None) == module_name]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            if callable(value):
                yield f"{module_name}.{name}", value


PUBLIC = dict(public_names())


def sections(doc: str) -> dict[str, str]:
    """The Google sections of a docstring; the rest is under an empty name."""
    parts = re.split(r"^(Args|Attributes|Shapes|Returns|Raises|Example):\n", doc, flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def described(doc: str) -> dict[str, str]:
    """The description of each argument."""
    args = sections(doc).get("Args", "")
    found = re.split(r"^    (\*{0,2}\w+)(?: \(.*?\))?: ", args, flags=re.M)
    return {name.lstrip("*"): text for name, text in zip(found[1::2], found[2::2], strict=True)}


def is_record(value: Any) -> bool:
    """Named tuples, data classes and exceptions: their fields are documented where they stand."""
    return isinstance(value, type) and (
        issubclass(value, tuple | BaseException) or hasattr(value, "__dataclass_fields__")
    )


def callables(value: Any) -> list[Callable[..., Any]]:
    """What a user calls: a function, or the constructor of a class and its forward pass."""
    if not isinstance(value, type):
        return [value]
    return [value.__init__, *([value.forward] if hasattr(value, "forward") else [])]


def takes_or_returns_tensors(value: Any) -> bool:
    if isinstance(value, type) and issubclass(value, torch_geometric.data.Dataset):
        return True
    return any("Tensor" in str(inspect.signature(call)) for call in callables(value))


def text_of(value: Any) -> str:
    """The docstring, and for a class that of its forward pass as well."""
    docs = [inspect.cleandoc(value.__doc__ or "")]
    if isinstance(value, type) and "forward" in vars(value):
        docs.append(inspect.cleandoc(vars(value)["forward"].__doc__ or ""))
    return "\n".join(docs)


@pytest.mark.parametrize("name", reference_modules())
def test_module_is_checked(name: str) -> None:
    if name in MISSING:
        pytest.skip(f"{name} is not checked, it needs {MISSING[name]}")
    module = importlib.import_module(name)
    assert inspect.cleandoc(module.__doc__ or "").strip(), f"{name} has no docstring"


def test_reference_lists_all_public_modules() -> None:
    root = Path(e2former_pyg.__file__).parent
    private = {
        "bags",
        "checks",
        "cuda_graphs",
        "engine",
        "files",
        "fx_passes",
        "ghost_exchange",
        "kernels",
    }
    private |= {"precision", "running"}
    modules = {path.stem for path in root.glob("*.py") if not path.stem.startswith("_")}
    modules |= {path.parent.name for path in root.glob("*/__init__.py")}
    listed = {name.rpartition(".")[2] for name in reference_modules()}
    assert listed == modules - private


def test_top_level_names_are_in_the_reference() -> None:
    documented = {id(value) for value in PUBLIC.values()}
    for name in set(e2former_pyg.__all__) - {"__version__"}:
        assert id(getattr(e2former_pyg, name)) in documented, name
        assert name in INDEX.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments_are_described(name: str) -> None:
    value = PUBLIC[name]
    assert inspect.cleandoc(value.__doc__ or "").strip(), f"{name} has no docstring"
    if is_record(value):
        return
    call = value.__init__ if isinstance(value, type) else value
    if isinstance(value, type) and "__init__" not in vars(value):
        return
    wanted = [p for p in inspect.signature(call).parameters if p not in ("self", "args")]
    missing = [p for p in wanted if p not in described(inspect.cleandoc(value.__doc__))]
    assert not missing, f"{name} does not describe {missing}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_methods_have_docstrings(name: str) -> None:
    value = PUBLIC[name]
    if not isinstance(value, type) or issubclass(value, tuple):
        return
    # PyG's protocol and what a base class documents.
    protocol = {"forward", "message", "message_and_aggregate", "edge_update", "aggregate", "update"}
    inherited = {n for base in value.__mro__[1:] for n in vars(base) if base.__doc__}
    own = [n for n in vars(value) if not n.startswith("_") and n not in protocol | inherited]
    # PyG adds methods of its own to a layer when it is first used.
    functions = [getattr(value, n) for n in own if callable(getattr(value, n))]
    missing = [f.__name__ for f in functions if f.__module__ == value.__module__ and not f.__doc__]
    assert not missing, f"{name} has no docstring on {missing}"


@pytest.mark.parametrize("name", [n for n in PUBLIC if takes_or_returns_tensors(PUBLIC[n])])
def test_tensors_have_shapes(name: str) -> None:
    value = PUBLIC[name]
    if name in ANY_SHAPES:
        return
    if is_record(value):
        annotations = inspect.get_annotations(value)
        source = inspect.getsource(value)
        for field in (n for n, kind in annotations.items() if "Tensor" in str(kind)):
            doc = re.search(rf"^    {field}: [^\n]*\n    r?\"\"\"(.*?)\"\"\"", source, re.M | re.S)
            assert doc, f"{name}.{field} has no docstring"
            assert "[" in doc[1], f"{name}.{field} has no shape"
        return
    parts = sections(inspect.cleandoc(value.__doc__ or ""))
    shapes = "".join(parts.get(title, "") for title in ("Args", "Shapes", "Returns"))
    assert re.search(r":math:`\(", shapes), f"{name} states no shapes"


@pytest.mark.parametrize("name", [n for n in PUBLIC if not is_record(PUBLIC[n])])
def test_quantities_have_units(name: str) -> None:
    if name in UNIT_CONVERSIONS:
        return
    value = PUBLIC[name]
    text = text_of(value)
    names = [p for call in callables(value) for p in inspect.signature(call).parameters]
    for quantity in set(names) & UNITS.keys():
        if "str" in str(inspect.signature(callables(value)[0]).parameters.get(quantity)):
            continue  # the name of a field
        lines = re.findall(rf"\b{quantity}\b.*(?:\n +.*)*", text, re.M)
        where = "\n".join(lines) + sections(inspect.cleandoc(value.__doc__)).get("Shapes", "")
        assert UNITS[quantity] in where, f"{name}: `{quantity}` has no unit {UNITS[quantity]}"


def test_the_checks_find_what_is_missing() -> None:
    doc = inspect.cleandoc(
        """Title.

        Args:
            pos (torch.Tensor): Positions.
            **kwargs (optional): More.

        Returns:
            A number.
        """
    )
    assert set(described(doc)) == {"pos", "kwargs"}
    assert "Å" not in described(doc)["pos"]
    assert "Shapes" not in sections(doc)
    assert len(PUBLIC) > 30
