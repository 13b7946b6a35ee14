"""In a real browser: an exported page, a player, and the explorer in JupyterLab. Skipped where there is no browser.

Those in JupyterLab take more than a minute together and are marked slow; `make browser-test` runs them all.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from cotlib import chain, player, store

ROOT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
HERE = ("file:", "data:", "blob:", "about:", "chrome:", "http://127.0.0.1:", "ws://127.0.0.1:")
NOISE = ("favicon",)
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    missing = "selenium is not installed; make browser-test installs it"
    webdriver = pytest.importorskip("selenium.webdriver", reason=missing)
    if not (BROWSER and DRIVER):
        pytest.skip("no browser here; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # which the superuser needs, as in containers
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument("--disable-background-networking")
    options.add_argument("--window-size=1200,1400")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


def console_errors(browser) -> list[str]:
    """What the console has called severe since it was last asked."""
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in severe if not any(noise in message for noise in NOISE)]


def requests(browser) -> list[str]:
    """Addresses that were asked for since this was last asked."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return sent + [e["params"]["url"] for e in events if e["method"] == "Network.webSocketCreated"]


def leaving(browser) -> list[str]:
    return [url for url in requests(browser) if not url.startswith(HERE)]


def until(condition, what: str, seconds: float = 90):
    """The first true value of condition()."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def open_page(browser, html: str, folder: Path) -> None:
    path = store.atomic_write(folder / "page.html", html)
    browser.get(path.as_uri())


# --- Pages ------------------------------------------------------------------------------------------------------


def frames(n):
    return [np.full((24, 24, 3), 40 * i, np.uint8) for i in range(n)]


@pytest.fixture
def page(browser, tmp_path):
    words = [f"step {i + 1}: </script> & “quoted”" for i in range(4)]
    open_page(browser, player.player(frames(4), words, "A dog & a cat").html, tmp_path)
    return browser


def screen(browser):
    return browser.find_element("id", "screen")


def test_the_player_follows_the_keys(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    seen = [screen(page).get_attribute("src")]
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.END, Keys.ARROW_RIGHT, Keys.HOME):
        ActionChains(page).send_keys(key).perform()
        seen.append(screen(page).get_attribute("src"))
    assert [seen.index(src) for src in seen] == [0, 1, 2, 1, 4, 4, 0] and len(set(seen)) == 4
    assert screen(page).get_attribute("alt").startswith("step 1: </script>")
    assert not console_errors(page) and not leaving(page)


def test_the_player_plays_to_its_end_and_stops(page):
    page.find_element("id", "play").click()
    until(lambda: page.find_element("id", "count").text == "4 / 4", "the last step", 10)
    until(lambda: page.find_element("id", "play").text == "Play", "it has stopped", 5)


def test_the_player_fits_a_telephone(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth <= 360 && innerWidth === 360")
        assert screen(page).size["width"] > 300
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_gallery_describes_its_pictures(browser, tmp_path):
    made = player.gallery(frames(3), ["a", "b", "c"], [True, False, None], "Gallery")
    open_page(browser, made.html, tmp_path)
    assert [i.get_attribute("alt") for i in browser.find_elements("tag name", "img")] == [
        "a Evaluator: right.",
        "b Evaluator: wrong.",
        "c Evaluator: unscored.",
    ]
    assert not console_errors(browser) and not leaving(browser)


def test_an_exported_notebook_opens_without_errors_and_fetches_nothing(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    chain.run_chain(["00_index"], scale="pocket", effort="smoke")
    browser.get((tmp_path / "pocket/smoke/00_index/executed.html").as_uri())
    assert "Figure 3" in browser.find_element("tag name", "body").text
    assert not console_errors(browser) and not leaving(browser)


def test_the_checks_notice_an_error_and_a_request(browser, tmp_path):
    open_page(browser, '<img src="http://example.org/x.png"><script>console.error("no")</script>', tmp_path)
    until(lambda: any("no" in message for message in console_errors(browser)), "the error", 5)
    assert leaving(browser) == ["http://example.org/x.png"]


# --- JupyterLab -------------------------------------------------------------------------------------------------


def explorer_only(folder: Path) -> Path:
    """90_explore up to its first widget."""
    notebook = json.loads((ROOT / "notebooks" / "90_explore.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    last = next(i for i, text in enumerate(sources) if text.startswith("open_explorer("))
    cells = [cell for cell in notebook["cells"][: last + 1] if cell["cell_type"] == "code"]
    return store.write_json(folder / "explorer.ipynb", {**notebook, "cells": cells})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab of its own: its settings, its kernels and its outputs are in a temporary folder."""
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    explorer_only(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    places |= {"JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "COTLIB_OUTPUTS": str(folder / "outputs")}
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.news_url": "",
        "LabApp.extension_manager": "readonly",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    environment = {**os.environ, **places, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        until(lambda: _answers(port, server), (folder / "lab.log").read_text()[-2000:], 60)
        yield f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(20)


def _answers(port: int, server: subprocess.Popen) -> bool:
    assert server.poll() is None, "JupyterLab ended"
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2).status == 200
    except OSError:
        return False


def run_all(browser) -> None:
    ready = "return Boolean(window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel)"
    until(lambda: browser.execute_script(ready), "the notebook is open and its kernel is there")
    browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells'); return null")


def status(browser) -> str:
    return browser.execute_script("return [...document.querySelectorAll('span[role=status]')].at(-1)?.innerText ?? ''")


def button(browser, label: str):
    return browser.find_elements("xpath", f"//button[normalize-space()='{label}']")[-1]


def shown(browser) -> list[str]:
    """Addresses of the overview and of the frame."""
    script = "return [...document.querySelectorAll('.jp-OutputArea img[alt]')].map(i => i.src).slice(-2)"
    return browser.execute_script(script)


def type_prompt(browser, text: str) -> None:
    """As if pasted: the driver's keys know no emoji."""
    field = browser.find_element("css selector", "input[placeholder='a photo of two dogs']")
    script = "arguments[0].value = arguments[1]; for (const e of ['input', 'change', 'blur']) "
    browser.execute_script(script + "arguments[0].dispatchEvent(new Event(e, {bubbles: true}))", field, text)


@pytest.fixture(scope="module")
def explorer(browser, lab):
    """The explorer, open and ready, and the seconds from running its cells to the first widget and picture."""
    browser.get(lab)
    begun = time.monotonic()
    run_all(browser)
    until(lambda: status(browser), "the first widget", 240)
    to_widget = time.monotonic() - begun
    until(lambda: status(browser).startswith("Decoded"), "the first pictures", 300)
    print(f"first widget after {to_widget:.1f} s, first prompt decoded after {time.monotonic() - begun:.1f} s")
    return browser


def no_traceback(browser) -> bool:
    return not browser.find_elements("css selector", ".jp-OutputArea-output[data-mime-type*='stderr'], .jp-mod-error")


@pytest.mark.slow
def test_a_slider_moves_the_picture(explorer):
    from selenium.webdriver.common.keys import Keys

    before, waits = shown(explorer), []
    handle = explorer.find_elements("css selector", ".noUi-handle")[1]  # of the step
    for key in (Keys.ARROW_LEFT,) * 3:
        last, begun = shown(explorer)[-1], time.monotonic()
        handle.send_keys(key)
        until(lambda last=last: shown(explorer)[-1] != last, "another frame", 10)
        waits.append(time.monotonic() - begun)
    print("a slider move takes", ", ".join(f"{1000 * wait:.0f} ms" for wait in waits), "with the browser's own")
    assert shown(explorer)[0] == before[0] and shown(explorer)[-1] != before[-1]
    assert not console_errors(explorer) and not leaving(explorer) and no_traceback(explorer)


@pytest.mark.slow
def test_a_misspelt_word_is_named_and_mended_then_drawn(explorer):
    before = shown(explorer)
    type_prompt(explorer, "a photo of a dgo")
    button(explorer, "Decode").click()
    until(lambda: "“dgo”" in status(explorer), "the word is named", 20)
    button(explorer, "dgo → dog").click()
    until(lambda: status(explorer).startswith("Ready"), "the word is mended", 20)
    begun = time.monotonic()
    button(explorer, "Decode").click()
    until(lambda: shown(explorer)[0] != before[0] and "step" in status(explorer), "the first candidate", 60)
    print(f"first candidates {time.monotonic() - begun:.1f} s after Decode")
    button(explorer, "Stop").click()
    button(explorer, "Stop").click()
    until(lambda: status(explorer).startswith(("Stopped", "Nothing")), "it has stopped", 60)
    assert not console_errors(explorer) and no_traceback(explorer)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "🐕", "dog " * 75])
def test_bad_prompts_get_a_sentence(explorer, text):
    type_prompt(explorer, text)
    before = status(explorer)
    button(explorer, "Decode").click()
    said = until(lambda: status(explorer) != before and status(explorer), "a sentence", 20)
    assert re.search(r"no prompt|outside the vocabulary|shorten", said) and no_traceback(explorer)


@pytest.mark.slow
def test_after_a_restart_everything_can_be_run_again(explorer):
    button(explorer, "Decode").click()
    script = "window.jupyterapp.shell.currentWidget.sessionContext.restartKernel().then(arguments[0], arguments[0])"
    explorer.execute_async_script(script)
    run_all(explorer)
    run_all(explorer)
    until(lambda: status(explorer).startswith("Decoded"), "pictures again", 300)
    assert no_traceback(explorer) and not leaving(explorer)
