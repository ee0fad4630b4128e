"""Sphinx configuration."""

import sys
import urllib.request
import warnings
from importlib.metadata import version as installed_version
from pathlib import Path

import e2former_pyg.models
import e2former_pyg.nn  # noqa: F401

DOCS = Path(__file__).resolve().parent
# The extension that reads benchmarks/results, and the scripts that lessons import.
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent / "examples")]

project = "e2former_pyg"
author = "The e2former_pyg developers"
copyright = f"2026, {author}"
release = version = installed_version("e2former-pyg")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx-mathjax-offline",  # MathJax among the built files: formulas need no other server
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "results",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_ext", "lessons", "gallery/*.ipynb"]

# A page for each name in a module's `__all__`, or for what is defined in a module without one, so
# that no list of names is kept here.
autosummary_generate = True
autosummary_imported_members = False
autosummary_ignore_module_all = False
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes"]

# Each `testcode` sees those before it on its page; pages are apart from each other.
doctest_global_setup = """
import torch
torch.manual_seed(0)
"""

# References within the project must resolve. Names of other projects do so only where their
# inventories can be reached, and :obj: is PyG's habit for any literal.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:obj", r".*"),
    (
        r"py:.*",
        r"(torch|torch_geometric|torch_sim|lammps|lightning|e3nn|ase|numpy|np|nn|abc|collections|pathlib)\b.*",
    ),
    (r"py:.*", r"(Data|Dataset|EdgeIndex|SparseTensor|Tensor)\b.*"),
    (r"py:class", r"e2former_pyg\.functional\.sharing\.SharedGeometry"),  # between our own modules
    (r"py:class", r"(optional|callable|iterable|any|int|float|str|bool)\b.*"),
    (r"py:class", r"(list|tuple|dict|set|object)\b.*"),
]


def reachable(url: str) -> bool:
    """Whether an inventory can be fetched: a build without network goes without its links."""
    try:
        with urllib.request.urlopen(f"{url}/objects.inv", timeout=10):
            return True
    except OSError:
        return False


def show_public_bases(app, name, obj, options, bases):
    """A base class that is not documented gives way to its own bases, which PyG or torch have."""
    for n, base in reversed(list(enumerate(bases))):
        package = sys.modules.get(base.__module__.rpartition(".")[0])
        if base.__module__.startswith(project) and base.__name__ not in package.__all__:
            bases[n : n + 1] = base.__bases__


def resolve_short_names(app, env, node, contnode):
    """What the package itself has is documented in its modules `nn` and `models`."""
    names = node.get("reftarget", "").removeprefix(f"{project}.").split(".")
    for module in ("nn", "models"):
        if names[0] in sys.modules[f"{project}.{module}"].__all__:
            target = ".".join((project, module, *names))
            kind, page = node["reftype"], node["refdoc"]
            domain = env.get_domain("py")
            return domain.resolve_xref(env, page, app.builder, kind, target, node, contnode)
    return None


def setup(app):
    app.connect("autodoc-process-bases", show_public_bases)
    app.connect("missing-reference", resolve_short_names)


intersphinx_mapping = {
    name: (url, None)
    for name, url in {
        "python": "https://docs.python.org/3",
        "torch": "https://docs.pytorch.org/docs/stable",
        "torch_geometric": "https://pytorch-geometric.readthedocs.io/en/latest",
        "e3nn": "https://docs.e3nn.org/en/latest",
        "ase": "https://ase-lib.org",
    }.items()
    if reachable(url)
}

myst_enable_extensions = ["dollarmath"]
# CONTRIBUTING.md and CHANGELOG.md are written for GitHub, whose anchors MyST makes as well.
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "lessons",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 1,
    "remove_config_comments": True,
    "capture_repr": (),
}
# Drawing to files only, wherever the documentation is built.
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

html_theme = "furo"
html_title = f"e2former_pyg {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"
