"""What every page must satisfy: all tags closed in order, nothing taken from elsewhere, no script, no
heading level left out, every picture described."""

from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags, self.sources, self.handlers = [], [], [], [], []
        self.ids, self.headings, self.alts = [], [], 0
        self.feed(text)
        self.close()
        assert self.open == []
        assert text.startswith("<!DOCTYPE html>")

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.headings += [tag] if tag in ("h1", "h2", "h3", "h4") else []
        self.alts += any(name == "alt" and value for name, value in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(text):
    """The page's visible text; fails when it is not well-formed or not self-contained."""
    page = Page(text)
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert all(source[1:] in page.ids for source in page.sources if source[0] == "#")
    assert len(set(page.ids)) == len(page.ids)
    levels = [int(heading[1]) for heading in page.headings]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert page.tags.count("img") == page.alts
    assert not page.handlers
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    return " ".join(page.text)
