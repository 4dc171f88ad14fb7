"""Plain text from HTML documentation, with paragraphs, lists and code blocks kept.

Use: from extract_text import html_to_text. Standard library only.
"""
import re
from html.parser import HTMLParser

_BLOCK = {
    "p", "div", "section", "article", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "dt", "dd",
    "table", "blockquote", "pre", "tr", "li", "hr", "figure", "aside", "details", "summary", "center",
}
_PARAGRAPH = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "table", "blockquote", "dt", "section"}
_SKIP_TAGS = {"script", "style", "head", "nav", "form", "button", "svg", "footer"}
_SKIP_CLASSES = {
    "headerlink", "navheader", "navfooter", "sphinxsidebar", "related", "footer", "linenos", "clearer",
    "menu", "nosearch", "toctree-wrapper", "toc", "mobile-nav", "searchmenu", "menubar", "tagline",
    "desktoponly", "mobileonly", "lineage",
}


class _Extractor(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts = []
        self.skip_tag = None  # tag whose subtree is being dropped
        self.skip_depth = 0
        self.pre_depth = 0

    def handle_starttag(self, tag, attrs):
        if self.skip_tag is not None:
            self.skip_depth += tag == self.skip_tag
            return
        classes = set((dict(attrs).get("class") or "").split())
        if tag in _SKIP_TAGS or classes & _SKIP_CLASSES:
            self.skip_tag, self.skip_depth = tag, 1
            return
        if tag == "pre":
            self.pre_depth += 1
        if tag == "br":
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append("\t")
        elif tag in _BLOCK:
            self.parts.append("\f" if tag in _PARAGRAPH else "\v")

    def handle_endtag(self, tag):
        if self.skip_tag is not None:
            self.skip_depth -= tag == self.skip_tag
            if self.skip_depth == 0:
                self.skip_tag = None
            return
        if tag == "pre":
            self.pre_depth = max(0, self.pre_depth - 1)
        if tag in _BLOCK:
            self.parts.append("\f" if tag in _PARAGRAPH else "\v")

    def handle_data(self, data):
        if self.skip_tag is None:
            if self.pre_depth:  # keep line structure; \x00 and \x01 survive the whitespace clean-up
                data = data.expandtabs(4).replace("\n", "\x00").replace(" ", "\x01")
            self.parts.append(data)


def html_to_text(html: str) -> str:
    """Text of one page; paragraphs are separated by one empty line."""
    parser = _Extractor()
    parser.feed(html)
    parser.close()
    text = "".join(parser.parts).replace("\u00b6", "").replace("\u00a0", " ").replace("\r", "")
    text = re.sub(r"[ \n\t]*\f[\f\v \n\t]*", "\f", text)
    text = re.sub(r"[ \n\t]*\v[\v \n\t]*(\f?)", lambda m: m.group(1) or "\v", text)
    text = re.sub(r"[ \n]+", " ", text)
    text = re.sub(r" *\t[\t ]*", " | ", text)
    text = text.replace("\f", "\n\n").replace("\v", "\n").replace("\x00", "\n").replace("\x01", " ")
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip() + "\n"
