"""The page in a real Chromium: load, click, change the block, upload, a corrupt file; nothing leaves the machine."""

import shutil
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import uvicorn
from PIL import Image

from tests.lens.conftest import picture
from vssm.lens.server import create_app, listen

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the page is tested with playwright, which is not installed"
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
WAIT = 60_000  # ms, for a busy machine

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@contextmanager
def served(app):
    """The application on a free port, in a thread: its address."""
    listener = listen(0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(sample):
    app = create_app(models=["vmamba_nano", "spatial_mamba_nano"], samples={"noise": sample}, max_bytes=100_000)
    with served(app) as found:
        yield found


@pytest.fixture
def opened(browser, address):
    """Opens pages, and afterwards checks what each of them asked for and complained about."""
    contexts, requests, faults = [], [], []

    def page(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        found = context.new_page()
        found.set_default_timeout(WAIT)
        found.on("request", lambda request: requests.append(request.url))
        found.on("pageerror", lambda error: faults.append(str(error)))
        found.on("console", lambda line: faults.append(line.text) if "Content Security" in line.text else None)
        found.goto(address)
        at_size_32(found)
        return found

    yield page
    for context in contexts:
        context.close()
    assert len(requests) > 3 and faults == []
    outside = [
        url for url in requests if urlsplit(url).hostname != "127.0.0.1" and not url.startswith(("data:", "blob:"))
    ]
    assert outside == []


def at_size_32(page):
    """Maps of 16, 8 and 4 patches, and the receptive field of the middle one drawn."""
    page.locator("[data-is=size]").select_option("32")
    page.wait_for_selector('.panel[data-shows="2.1 2,2 decayed_qk mean"]')
    page.wait_for_selector('figure[data-shows="2 2,2"]', state="attached")


def click(page, row, column, panel=0):
    """The place of the image at these shares of its height and width."""
    canvas = page.locator("[data-is=view] canvas.picker").nth(panel)
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * column, "y": box["height"] * row})


def colours(page, selector):
    """The distinct colours of a canvas."""
    code = """node => { const {data} = node.getContext('2d').getImageData(0, 0, node.width, node.height);
        return new Set(new Uint32Array(data.buffer)).size; }"""
    return page.locator(selector).first.evaluate(code)


def test_it_is_useful_at_once(opened):
    page = opened()
    assert page.inner_text("h2") == "vmamba_nano, random weights, 32 × 32"
    assert page.locator("[data-is=classes] li").count() == 5
    assert page.locator("[data-is=random]").is_visible(), "random weights are named as such"
    assert page.locator("[data-is=activation] figure").count() == 5, "four routes and their sum"
    assert page.locator("[data-is=states] figure").count() == 4
    for part in ("view", "row", "activation", "states", "large"):
        assert colours(page, f"[data-is={part}] figure > canvas") > 8, part
    assert not page.locator("#message").is_visible()


def test_a_click_shows_its_patch(opened):
    page = opened()
    click(page, 0.9, 0.1)
    page.wait_for_selector('.panel[data-shows="2.1 3,0 decayed_qk mean"]')
    page.wait_for_selector('figure[data-shows="2 3,0"]', state="attached")
    assert "patch in row 3, column 0 of 4 × 4" in page.inner_text("#status")
    page.locator("#weights").select_option("decay")
    page.wait_for_selector('.panel[data-shows="2.1 3,0 decay mean"]')


def test_the_pointer_shows_rows_without_a_question(opened):
    page, asked = opened(), []
    page.wait_for_selector('figure[data-shows="2.1 16"]', state="attached")  # the matrix is here
    page.on("request", lambda request: asked.append(request.url))
    box = page.locator("[data-is=view] canvas.picker").bounding_box()
    for column in (0.1, 0.9):
        page.mouse.move(box["x"] + box["width"] * column, box["y"] + box["height"] * 0.1)
        page.wait_for_selector(f'[data-is=row] figure[data-shows="0,{int(4 * column)}"]', state="attached")
    page.mouse.move(box["x"], box["y"] - 40)
    page.wait_for_selector('[data-is=row] figure[data-shows="2,2"]', state="attached")
    assert asked == []


def test_blocks_and_channels_from_the_keyboard(opened):
    page = opened()
    page.locator("[data-is=block]").press("Home")
    page.wait_for_selector('.panel[data-shows="0.0 8,8 decayed_qk mean"]')
    assert "16 × 16 patches, 32 channels" in page.locator("[data-is=blockname]").inner_text()
    page.locator("[data-is=channel]").press("ArrowRight")
    page.wait_for_selector('.panel[data-shows="0.0 8,8 decayed_qk 0"]')
    page.locator("[data-is=view] canvas.picker").press("ArrowUp")
    page.wait_for_selector('.panel[data-shows="0.0 7,8 decayed_qk 0"]')


def test_an_upload(opened):
    page = opened()
    before = page.locator("[data-is=classes]").inner_text()
    grey = {"name": "grey.png", "mimeType": "image/png", "buffer": picture((50, 70), "L")}
    page.set_input_files("#file", grey)
    page.wait_for_function("before => document.querySelector('[data-is=classes]').innerText !== before", arg=before)
    assert page.locator("#image option:checked").inner_text() == "grey.png, 50 × 70"
    assert not page.locator("#message").is_visible()


def test_what_cannot_be_used_is_one_message(opened):
    page = opened()
    heading, chosen = page.inner_text("h2"), page.locator("#image").input_value()
    for content, words in (
        (b"nonsense", "the image cannot be used: not an image, or of a kind that Pillow cannot read"),
        (picture()[:300], "the image cannot be used: "),
        (b"x" * 100_001, "the file is larger than "),
    ):
        page.set_input_files("#file", {"name": "bad.png", "mimeType": "image/png", "buffer": content})
        page.locator("#message", has_text=words).wait_for()
    assert (page.inner_text("h2"), page.locator("#image").input_value()) == (heading, chosen), "all else stays"
    click(page, 0.1, 0.1)
    page.wait_for_selector('.panel[data-shows="2.1 0,0 decayed_qk mean"]')
    assert not page.locator("#message").is_visible()


def test_two_models_and_their_figure(opened, tmp_path):
    page = opened(accept_downloads=True)
    page.check("#second")
    second = page.locator(".panel").nth(1)
    second.locator("[data-is=model]").select_option("spatial_mamba_nano")
    second.locator("[data-is=size]").select_option("32")
    page.wait_for_selector('.panel:nth-child(2)[data-shows="2.1 2,2 decayed_qk mean"]')
    assert second.locator("[data-is=states] figure").count() == 2, "before and after fusion"
    click(page, 0.1, 0.9)
    for number in (1, 2):
        page.wait_for_selector(f'.panel:nth-child({number})[data-shows="2.1 0,3 decayed_qk mean"]')
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "vssm-lens-vmamba_nano-2.1-spatial_mamba_nano-2.1.png"
    download.value.save_as(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.size[0] == 2 * (4 * 242 + 18) and len(figure.convert("RGB").getcolors(1 << 24)) > 200
    page.uncheck("#second")
    assert page.locator(".panel").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen(opened, scheme):
    page = opened(viewport={"width": 360, "height": 700}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(246, 247, 249)") == (scheme == "light")
