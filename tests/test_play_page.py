"""The page in a real browser: keys, images, going back, branching, the policy, demonstrations (`mbrl/play/page/`)."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from playing import served, session_of
from tiny import Command, tiny

from mbrl import train
from mbrl.experiment.episodes import EpisodeStore
from mbrl.interop.trained import open_run

driver = pytest.importorskip("playwright.sync_api", reason="no browser driver here: pip install '.[browser]'")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SECONDS = 1000  # a page counts in milliseconds


@pytest.fixture(scope="module")
def browser():
    """Chromium as the system has it, or as `playwright install chromium` puts it."""
    path = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    with driver.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        except driver.Error:
            pytest.skip("no Chromium here: apt-get install chromium, or playwright install chromium")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def trained(finished: Path):
    return open_run(str(finished))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def session(kept: Path, trained):
    with session_of(kept, trained, speed=60.0) as session:
        yield session


@pytest.fixture
def page(browser, session):
    """The page, open and drawn; a word of its console is a failure."""
    with served(session) as address:
        page, said = browser.new_page(viewport={"width": 1280, "height": 800}), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if address not in request.url else None)
        page.set_default_timeout(60 * SECONDS)
        page.goto(address)
        page.wait_for_selector("body[data-shown='0']")
        yield page
        page.close()
    ours = ("ws://127.0.0.1", "blob:http://127.0.0.1", "Canvas2D: Multiple readback")  # the last is about this test
    assert [line for line in said if not line.startswith(ours)] == []


def here(page) -> int:
    return int(page.evaluate("document.body.dataset.here"))


def until(page, true: str) -> None:
    """Not `wait_for_function`, which has the page itself evaluate a text: its security policy forbids that."""
    for _ in range(3000):
        if page.evaluate(true):
            return
        page.wait_for_timeout(20)
    raise TimeoutError(true)


def drawn(page, which: str, moment: int) -> np.ndarray:
    """What stands on a canvas once the moment is drawn: uint8 (H, W, 3)."""
    page.wait_for_selector(f"body[data-shown='{moment}']")
    script = """name => { const canvas = document.querySelector(`#${name} canvas`);
        return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]; }"""
    pixels = np.array(page.evaluate(script, which), np.uint8)
    size = int((pixels.size / 4) ** 0.5)
    return pixels.reshape(size, size, 4)[..., :3]


def hold(page, key: str, moments: int) -> None:
    """Until time has gone on by so many moments."""
    end = here(page) + moments
    page.keyboard.down(key)
    until(page, f"Number(document.body.dataset.here) >= {end}")
    page.keyboard.up(key)
    page.wait_for_timeout(200)


def as_drawn(image: np.ndarray) -> np.ndarray:
    return image.transpose(1, 2, 0)


def click_plot(page, session, moment: int) -> None:
    """A click on the curves above the decision of a moment of the way to here."""
    box = page.locator("#plot").bounding_box()
    depths = [m.depth for m in session.conduct.drive.tree.moments.values()]
    low, high = 0, max(20, *depths)
    x = 64 + (session.moment(moment).depth - low) / (high - low) * (box["width"] - 64 - 16)
    page.mouse.click(box["x"] + x, box["y"] + 0.6 * box["height"])
    page.mouse.move(5, 5)
    until(page, f"document.body.dataset.here === '{moment}'")


def test_keys_move_the_dream_and_going_back_gives_the_frames_that_were_there(page, session):
    first = drawn(page, "dream", 0)
    hold(page, "ArrowRight", 6)
    end = here(page)
    assert not np.array_equal(drawn(page, "dream", end), first)
    assert not np.array_equal(drawn(page, "real", end), drawn(page, "dream", end))
    way = session.conduct.drive.tree.path(session.moment(end))
    assert all(moment.action[0] == 1 and moment.action[1] == 0 for moment in way[1:])
    middle = way[3]
    click_plot(page, session, middle.id)
    for name, image in (("dream", middle.dream), ("real", middle.real)):
        assert np.array_equal(drawn(page, name, middle.id), as_drawn(image))
    differing = np.minimum(3 * np.abs(middle.dream.astype(int) - middle.real), 255)
    assert np.array_equal(drawn(page, "error", middle.id), as_drawn(differing))
    # Another way from there is a branch.
    hold(page, "ArrowUp", 3)
    other = session.conduct.drive.tree.path(session.moment(here(page)))
    assert other[3] is middle
    assert other[4] is not way[4]
    assert np.array_equal(drawn(page, "dream", other[-1].id), as_drawn(other[-1].dream))
    page.keyboard.press("Home")
    until(page, "document.body.dataset.here === '0'")
    assert np.array_equal(drawn(page, "dream", 0), first)


def test_one_step_one_back_and_going_on(page):
    page.keyboard.press(".")
    until(page, "document.body.dataset.here === '1'")
    page.keyboard.press(",")
    until(page, "document.body.dataset.here === '0'")
    page.keyboard.press(" ")
    until(page, "Number(document.body.dataset.here) > 3 && document.body.classList.contains('runs')")
    page.click("#run")
    until(page, "!document.body.classList.contains('runs')")
    page.keyboard.press("r")
    page.wait_for_selector("#dream .badge.on >> text=woken")
    assert page.locator("#mse").inner_text() == "mse 0.0000"


def test_the_mouse_drives(page, session):
    pad = page.locator(".pad").bounding_box()
    page.mouse.move(pad["x"] + pad["width"] / 2, pad["y"] + pad["height"] / 2)
    page.mouse.down()
    page.mouse.move(pad["x"] + pad["width"] / 2, pad["y"] + 2)
    until(page, "Number(document.body.dataset.here) > 2")
    page.mouse.up()
    page.wait_for_timeout(300)
    stopped = here(page)
    assert session.moment(stopped).action[1] == 1, "up"
    box = page.locator("#dream .image").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 100)
    until(page, f"Number(document.body.dataset.here) > {stopped + 2}")
    page.mouse.up()
    page.wait_for_timeout(300)
    action = session.moment(here(page)).action
    assert action[0] == -1
    assert action[1] == pytest.approx(0, abs=1e-6)


def test_a_gamepad_drives(page, session):
    page.evaluate("""() => {
        const buttons = new Array(16).fill({ pressed: false });
        window.axes = [-1, 0, 0, 0];
        navigator.getGamepads = () => [{ axes: window.axes, buttons }];
    }""")
    until(page, "Number(document.body.dataset.here) > 1")
    page.evaluate("window.axes = [0, 0, 0, 0]")
    page.wait_for_timeout(300)
    assert session.moment(here(page)).action.tolist() == [-1, 0]


def test_the_policy_takes_over_and_a_key_takes_back(page, session):
    page.click("#pilots button >> text=Policy")
    until(page, "Number(document.body.dataset.here) > 3")
    assert session.moment(here(page)).pilot == "policy"
    hold(page, "ArrowLeft", 2)
    assert page.get_attribute("#pilots button[data-name=you]", "aria-pressed") == "true"
    assert session.moment(here(page)).pilot == "you"
    stopped = here(page)
    page.wait_for_timeout(300)
    assert here(page) == stopped


def test_a_demonstration_is_kept_and_trains(page, session, kept: Path, run_root: Path, typed: Command):
    page.click("#pilots button >> text=Expert")
    until(page, "Number(document.body.dataset.here) >= 8")
    page.keyboard.press(" ")
    page.keyboard.press("k")
    page.wait_for_selector("#note >> text=train with demonstrations=")
    [episode] = EpisodeStore(kept).load([0])
    code, _, line = typed(train.main, *tiny(run_root, f"demonstrations={kept}", "num_train_frames=80"))
    assert (code, line) == (0, "")
    [first] = EpisodeStore(run_root / "toy/reach/mbpo/1/replay").load([0])
    assert np.array_equal(first.frames, episode.frames)


def test_a_film_is_kept(page):
    hold(page, "ArrowRight", 3)
    for format, begins in (("gif", b"GIF89a"), ("mp4", b"\x00\x00\x00")):
        with page.expect_download() as download:
            page.click(f"#{format}")
        assert download.value.suggested_filename == f"toy-reach.{format}"
        assert Path(download.value.path()).read_bytes().startswith(begins)


def test_a_start_in_a_recorded_episode(page, session):
    page.click("#choose")
    page.wait_for_selector("#episodes[open]")
    assert page.locator("#source option").all_inner_texts() == [
        "demonstration (0)", "the expert's episode", "the run's episode (10)",
    ]  # fmt: skip
    page.select_option("#source", "episode")
    page.fill("#number", "4")
    page.wait_for_selector("#begin:not([disabled])")
    page.evaluate("""() => { const slider = document.querySelector("#decision"); slider.value = 5;
        slider.dispatchEvent(new Event("input")); }""")
    page.click("#begin")
    until(page, "document.body.dataset.here === '1'")
    [episode] = EpisodeStore(Path(session.about["run"]) / "replay").load([4])
    assert np.array_equal(drawn(page, "real", 1), as_drawn(episode.frames[5]))


def test_a_page_that_is_opened_again_shows_what_there_was(page, session):
    hold(page, "ArrowRight", 2)
    last = here(page)
    page.reload()
    page.wait_for_selector(f"body[data-shown='{last}']")
    assert np.array_equal(drawn(page, "dream", last), as_drawn(session.moment(last).dream))


def test_a_lost_connection_comes_back(browser, session):
    page = browser.new_page()
    with served(session) as address:
        page.goto(address)
        page.wait_for_selector("body[data-shown='0']")
    page.wait_for_selector("body.lost")
    assert "trying again" in page.locator("#link").inner_text()
    with served(session, port=int(address.split(":")[-1])):
        page.wait_for_selector("body:not(.lost)", timeout=30 * SECONDS)
        page.keyboard.press(".")
        page.wait_for_selector("body[data-shown='1']", timeout=30 * SECONDS)
        page.close()


def test_light_and_dark(page):
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.reload()
    page.wait_for_selector("body[data-shown='0']")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080), (900, 700), (400, 800)], ids=str)
def test_pixels_are_whole_and_nothing_sticks_out(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.wait_for_timeout(200)
    width = page.evaluate("document.querySelector('#dream canvas').getBoundingClientRect().width")
    assert width % 32 == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_every_key_is_told(page):
    page.keyboard.press("?")
    told = page.locator("#all-keys").inner_text()
    for word in ("Space", "Home", "keep as a demonstration", "wake the dream"):
        assert word in told
    page.keyboard.press("Escape")
