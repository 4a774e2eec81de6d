"""The page in a browser: headless Chromium at two widths; skipped where selenium or Chromium is not installed."""

import contextlib
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("selenium", reason="the page is tried by selenium, which is not installed")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from genjax.serving.app import Settings
from genjax.serving.batching import Limits
from genjax.serving.guard import Guard
from genjax.tools import prompts
from tests.serving.served import serving
from tests.tools.untrained import untrained

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="the page is tried in Chromium, which is not installed (chromium-driver)"
)
#: A laptop and a phone.
WIDTHS = (1280, 390)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip


@contextlib.contextmanager
def opened(folder):
    """A browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*_FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def visit(browser, client, width):
    """Opens the page at a width."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"http://127.0.0.1:{client.port}/")


def is_open(browser):
    return ", step" in text_of(browser, "model")


def until(browser, condition):
    WebDriverWait(browser, 240, 0.1).until(lambda _: condition())


def find(browser, name):
    return browser.find_element(By.ID, name)


def text_of(browser, name):
    return find(browser, name).text


def shown(browser):
    """The kind of each picture that is there and decoded."""
    script = (
        "return [...document.querySelectorAll('#sheet img')].filter(e => e.naturalWidth).map(e => e.src.slice(5, 14))"
    )
    return browser.execute_script(script)


def check_page(browser):
    """Nothing is wider than the window, every control has a name for screen readers, and nothing was blocked."""
    width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
    controls = browser.find_elements(By.CSS_SELECTOR, "input, textarea, button, summary")
    assert all(each.accessible_name for each in controls if each.is_displayed())
    told = [each for each in browser.get_log("browser") if each["level"] in ("WARNING", "SEVERE")]
    assert [each for each in told if "favicon" not in each["message"]] == []


def test_a_chat_is_held_by_keyboard_at_two_widths(browser, tmp_path):
    run = untrained("instructions", tmp_path / "chat")
    with serving(run, Settings(limits=Limits(slots=4))) as client:
        for width in WIDTHS:
            visit(browser, client, width)
            until(browser, lambda: is_open(browser))
            for name, value in (("max_tokens", "6"), ("seed", "3")):
                find(browser, name).send_keys(value)
            find(browser, "logprobs").send_keys(Keys.SPACE)
            find(browser, "prompt").send_keys("walk twice", Keys.ENTER)
            until(browser, lambda: find(browser, "send").is_enabled())
            asked = {"messages": [{"role": "user", "content": "walk twice"}], "seed": 3, "max_tokens": 6}
            want = client.ask("/v1/chat/completions", asked)[1]["choices"][0]["message"]["content"]
            turns = browser.find_elements(By.CSS_SELECTOR, ".turn span:not(.token)")
            assert [each.get_property("textContent") for each in turns] == ["walk twice", want]
            hints = [each.get_attribute("title") for each in browser.find_elements(By.CLASS_NAME, "token")]
            assert all("% of this" in hint for hint in hints)
            # From the prompt, the keyboard reaches the button that sends.
            find(browser, "prompt").send_keys(Keys.TAB)
            assert browser.switch_to.active_element.get_attribute("id") == "send"
            check_page(browser)
        find(browser, "top_p").send_keys("7")
        browser.execute_script("document.getElementById('form').noValidate = true")
        find(browser, "prompt").send_keys("walk", Keys.ENTER)
        until(browser, lambda: "top_p=7 must be between" in text_of(browser, "status"))


def test_pictures_are_drawn_by_seed_and_by_sliders(browser, tmp_path):
    run = untrained("vae_digits", tmp_path / "pictures")
    with serving(run, Settings(guard=Guard(api_key="secret"))) as client:
        for width in WIDTHS:
            visit(browser, client, width)
            until(browser, lambda: "key is missing" in text_of(browser, "status"))
            browser.get_log("browser")
            find(browser, "key").send_keys("secret", Keys.TAB)
            until(browser, lambda: is_open(browser))
            find(browser, "count").clear()
            find(browser, "count").send_keys("4", Keys.TAB)
            find(browser, "send").click()
            until(browser, lambda: shown(browser) == ["image/png"] * 4)
            find(browser, "latents").click()
            slider = browser.find_element(By.CSS_SELECTOR, "#sliders input")
            slider.send_keys(Keys.ARROW_RIGHT)
            until(browser, lambda: len(shown(browser)) == 1)
            assert float(slider.get_property("value")) == pytest.approx(0.1)
            check_page(browser)


def test_a_picture_stands_beside_its_answer(browser, tmp_path):
    file, large = tmp_path / "scene.png", tmp_path / "large.png"
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(file)
    # Larger than a request may be, so that the page makes it smaller.
    Image.fromarray(np.random.default_rng(0).integers(256, size=(700, 800, 3), dtype=np.uint8)).save(large)
    assert large.stat().st_size > 2**20
    question = "what colour is the circle?"
    options = prompts.Options(seed=3, max_new_tokens=4, image=(str(file),))
    run = untrained("questions_scenes", tmp_path / "sees")
    want = "".join(prompts.generate(run, question, options))
    with serving(run, Settings(limits=Limits(slots=1))) as client:
        for width in WIDTHS:
            visit(browser, client, width)
            until(browser, lambda: is_open(browser))
            for name, value in (("max_tokens", "4"), ("seed", "3"), ("pictures", str(file)), ("prompt", question)):
                find(browser, name).send_keys(value)
            find(browser, "send").click()
            until(browser, lambda: find(browser, "send").is_enabled())
            turns = browser.find_elements(By.CSS_SELECTOR, ".turn > span")
            assert [each.get_property("textContent") for each in turns] == [question, want]
            script = "return [...document.querySelectorAll('.turn.user img')].map(each => each.naturalWidth)"
            assert browser.execute_script(script) == [32]
            check_page(browser)
        find(browser, "pictures").send_keys(str(large))
        find(browser, "send").click()
        until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".turn.assistant")) == 2)
        until(browser, lambda: find(browser, "send").is_enabled())
        assert text_of(browser, "status") == "" and browser.execute_script(script) == [32, 800]


def test_a_film_shows_the_way_from_noise(browser, tmp_path):
    run = untrained("edm_digits", tmp_path / "film")
    with serving(run) as client:
        visit(browser, client, WIDTHS[0])
        until(browser, lambda: is_open(browser))
        find(browser, "film").click()
        find(browser, "send").click()
        until(browser, lambda: shown(browser) == ["image/gif"])
        check_page(browser)
