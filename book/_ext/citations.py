"""Citations in round brackets, as in "(LeCun et al., 1998)" and "LeCun et al. (1998)"."""

from dataclasses import dataclass, field
from functools import partial

from sphinxcontrib.bibtex.plugin import register_plugin
from sphinxcontrib.bibtex.style.referencing import BracketStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle

ROUND = partial(BracketStyle, left="(", right=")")


@dataclass
class RoundAuthorYearStyle(AuthorYearReferenceStyle):
    """The author-year style, with round brackets."""

    bracket_parenthetical: BracketStyle = field(default_factory=ROUND)
    bracket_textual: BracketStyle = field(default_factory=ROUND)


def setup(app):
    register_plugin(
        "sphinxcontrib.bibtex.style.referencing", "author_year_round", RoundAuthorYearStyle
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
