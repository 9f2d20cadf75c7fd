"""A link on every page by which a reader reports an error, once the book has an address."""

from urllib.parse import urlencode


def add_link(app, pagename, templatename, context, doctree):
    url = app.config.html_theme_options.get("repository_url")
    if url:
        project = url.rstrip("/").removesuffix(".git")
        context["header_buttons"].append(
            {
                "type": "link",
                "text": "Report an error",
                "tooltip": "Report an error on this page",
                "url": f"{project}/issues/new?{urlencode({'title': f'Error in {pagename}'})}",
                "icon": "fas fa-bug",
                "label": "report-error",
            }
        )


def setup(app):
    app.connect("html-page-context", add_link, priority=500)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
