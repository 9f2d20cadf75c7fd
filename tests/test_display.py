import ast
import re
from pathlib import Path

import numpy as np
import pytest

from companion import training
from companion.data.write_lstm_ablations import learn
from companion.display import Source, show
from companion.training import History, accuracy, fit

ROOT = Path(__file__).parent.parent


def test_shows_the_source_of_a_function_without_its_docstring():
    shown = show(accuracy)
    assert repr(shown).startswith("@checked\ndef accuracy(")
    assert repr(shown).endswith("    return (said == target).double().mean().item()")
    assert '"""' not in repr(shown)
    assert ast.dump(ast.parse(repr(shown)).body[0].args) == ast.dump(
        function_of(training, "accuracy").args
    )


def function_of(module, name):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    return next(node for node in tree.body if getattr(node, "name", "") == name)


def test_nothing_but_docstrings_is_left_out():
    whole, bare = function_of(training, "fit"), ast.parse(repr(show(fit))).body[0]
    assert [ast.dump(node) for node in whole.body[1:]] == [ast.dump(node) for node in bare.body]


def test_shows_docstrings_when_asked():
    assert "The fraction of examples" in repr(show(accuracy, docstring=True))


def test_shows_a_class_with_its_decorator_and_methods_without_their_docstrings():
    shown = repr(show(History))
    assert shown.startswith("@dataclass\nclass History:\n    loss: list[float]")
    assert "def plot" in shown
    assert '"""' not in shown


def test_shows_a_method_without_its_indentation():
    assert repr(show(History.plot)).startswith("def plot(self")
    assert repr(show(History().plot)) == repr(show(History.plot))


def test_shows_several_things_in_order_and_names_each_file_once():
    shown = show(fit, accuracy, show)
    assert (
        repr(shown).index("def fit")
        < repr(shown).index("def accuracy")
        < repr(shown).index("def show")
    )
    assert shown.files == [
        "companion/training.py",
        "tests/test_training.py",
        "companion/display.py",
        "tests/test_display.py",
    ]


def test_the_page_links_to_the_module_and_its_tests_which_exist():
    page = show(fit)._repr_html_()
    links = re.findall(r'href="\.\./([^"]+)"', page)
    assert links == ["companion/training.py", "tests/test_training.py"]
    assert all((ROOT / link).exists() for link in links)


def test_a_script_beside_the_data_is_linked_where_it_is():
    assert show(learn).files == ["companion/data/write_lstm_ablations.py"]
    assert (ROOT / show(learn).files[0]).exists()


def test_the_page_is_the_source_in_colours():
    page = show(accuracy)._repr_html_()
    assert '<span class="k">def</span>' in page
    code = re.search(r"<pre[^>]*>(.*)</pre>", page, re.S).group(1)
    text = (
        re.sub(r"<[^>]+>", "", code)
        .replace("&quot;", '"')
        .replace("&#39;", "'")
        .replace("&gt;", ">")
    )
    assert text.strip() == repr(show(accuracy))


def test_a_body_that_is_only_a_docstring_keeps_it():
    from companion.display import _without_docstrings

    text = 'class Error(ValueError):\n    """Raised."""\n'
    assert _without_docstrings(text) == text
    nested = 'def f():\n    """Out."""\n    def g():\n        """In."""\n\n        return 1\n'
    nested += "    return g\n"
    assert (
        _without_docstrings(nested)
        == "def f():\n    def g():\n        return 1\n    return g\n"
    )


@pytest.mark.parametrize(
    "thing", [np.mean, len, 3, "fit", training, Source("", []).__init__.__func__.__code__]
)
def test_refuses_what_is_not_the_companions_code(thing):
    with pytest.raises(TypeError, match="functions, classes and methods of the companion, got"):
        show(thing)
