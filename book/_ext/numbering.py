"""A chapter has its file's number: the figures of ``06-convolution.md`` are 6.1, 6.2, … in any
book.
"""

import re

from docutils import nodes
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles


def chapter_number(docname: str) -> int | str | None:
    """The number at the front of a file's name: 6 for ``book/06-convolution``, ``A2`` for
    ``book/a2-notation``.
    """
    match = re.match(r"book/(?:(\d\d)|(a\d))-", docname)
    return match and (int(match[1]) if match[1] else match[2].upper())


def renumber(assign_section_numbers):
    """Let Sphinx number the chapters one after another, then put the files' own numbers in the
    place of its own.
    """

    def assign(self, env):
        rewrite = assign_section_numbers(self, env)
        for docname, numbers in env.toc_secnumbers.items():
            chapter = chapter_number(docname)
            env.toc_secnumbers[docname] = {
                anchor: n and (chapter, *n[1:]) for anchor, n in numbers.items()
            }
            for node in [env.titles[docname], *env.tocs[docname].findall(nodes.reference)]:
                if node.get("secnumber"):
                    node["secnumber"] = [chapter, *node["secnumber"][1:]]
        return rewrite

    return assign


def setup(app):
    collector = TocTreeCollectorWithStyles
    collector.assign_section_numbers = renumber(collector.assign_section_numbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
