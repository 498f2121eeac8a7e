"""Slips of a person at the review's page, and what the page makes of them; in a real browser."""

from __future__ import annotations

import csv
import time

import pytest

from review_runs import CLASSES, Server, make_run
from test_review_browser import (  # the fixtures `browser`, `run` and `server` among them
    browser,
    current_image,
    opened,
    placed,
    press,
    pull,
    pytestmark,
    run,
    saved,
    screen,
    server,
    text,
    until,
)
from torchdoctor.runs.review_files import read_masks

__all__ = ["browser", "pytestmark", "run", "server"]
ENTER, DELETE, ESCAPE = "\ue007", "\ue017", "\ue00c"
NOTHING = "return /^Nothing is marked/.test(document.querySelector('#mask-state').textContent)"
STATE = "return document.querySelector('#mask-state').textContent"


def test_corners_of_a_polygon_stay_while_another_image_is_open(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "masks")
    image = current_image(browser, run, server)
    press(browser, "2")
    pull(browser, [(10, 10), (30, 12), (20, 30)], click=True)
    press(browser, "s")
    until(browser, "return /^Nothing is marked.$/.test(document.querySelector('#mask-state').textContent)")
    press(browser, "q")
    until(browser, "return /3 corners/.test(document.querySelector('#mask-state').textContent)")
    assert current_image(browser, run, server) == image
    saved(browser, lambda: press(browser, ENTER))
    assert read_masks(run)[image].content == "object"
    # Corners that a quick answer makes needless are no drawing that waits to be saved.
    until(browser, NOTHING)
    pull(browser, [(10, 10)], click=True)
    assert "Polygon of 1 corner;" in text(browser, "#mask-state")
    saved(browser, lambda: press(browser, "n"))
    leaves = "return window.dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    assert browser.execute_script(leaves)
    until(browser, NOTHING)
    pull(browser, [(10, 10)], click=True)
    assert not browser.execute_script(leaves)


def test_two_corners_are_kept_and_explained(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "masks")
    press(browser, "2")
    pull(browser, [(10, 10), (30, 12)], click=True)
    press(browser, ENTER)
    assert "three corners" in text(browser, "#saved")
    pull(browser, [(20, 30)], click=True)
    assert "3 corners" in text(browser, "#mask-state")
    saved(browser, lambda: press(browser, ENTER))


def test_enter_saves_after_a_click_on_the_tab(browser, server):
    screen(browser, "desk")
    opened(browser, server, "labels")
    browser.find_element("css selector", "#tab-masks").click()
    until(browser, NOTHING)
    press(browser, "w")
    saved(browser, lambda: press(browser, ENTER))


def test_keys_mean_the_image_after_the_slider_was_moved(browser, server):
    screen(browser, "desk")
    opened(browser, server, "masks")
    browser.find_element("css selector", "#radius").click()
    radius = int(text(browser, "#radius-text").split()[0])
    press(browser, "\ue014")  # an arrow key moves the slider
    assert int(text(browser, "#radius-text").split()[0]) == radius + 1
    press(browser, "w")
    assert text(browser, "#mask-state").startswith("100.0 %")
    press(browser, "x")


def test_taking_back_what_was_never_saved_wipes_nothing(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "masks")
    pull(browser, [(10, 10), (30, 30)])
    drawn = text(browser, "#mask-state")
    press(browser, DELETE)
    assert "no saved answer" in text(browser, "#saved")
    assert text(browser, "#mask-state") == drawn and "Not saved yet" in drawn


def test_two_fingers_that_zoom_leave_no_corner(browser, server):
    screen(browser, "phone")
    opened(browser, server, "masks")
    browser.find_element("css selector", "[data-tool=polygon]").click()
    browser.execute_script("window.scrollTo(0, 0)")
    _, _, _, ((x1, y1), (x2, y2)) = placed(browser, [(20, 10), (40, 30)])

    def touch(kind, *points):
        at = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    touch("touchStart", (x1, y1))
    touch("touchEnd")
    until(browser, "return /1 corner;/.test(document.querySelector('#mask-state').textContent)")
    touch("touchStart", (x2, y1))
    touch("touchStart", (x2, y1), (x1, y2))
    touch("touchMove", (x2 + 20, y1 - 20), (x1 - 20, y2 + 20))
    touch("touchEnd")
    until(browser, "return /1 corner;/.test(document.querySelector('#mask-state').textContent)")


def test_the_other_category_is_found_by_its_beginning_and_a_wrong_name_answers_nothing(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "labels")
    count = text(browser, "#label-count")
    press(browser, "c")
    until(browser, "return document.querySelector('#other').open")
    press(browser, *"zzz", ENTER)
    time.sleep(0.2)
    assert browser.execute_script("return document.querySelector('#other').open")
    press(browser, *"\ue003\ue003\ue003", "r")  # backspace, then a letter that two names have
    names = "return [...document.querySelector('#other-list').options].map(one => one.textContent)"
    assert browser.execute_script(names) == ["red", CLASSES[0]]  # the latter has it inside
    press(browser, ESCAPE)
    assert text(browser, "#label-count") == count


def test_the_image_before_is_not_seen_beside_the_next_question(browser, server):
    screen(browser, "desk")
    opened(browser, server, "labels")
    until(browser, "return document.querySelector('#label-image').complete")
    visible = "return getComputedStyle(document.querySelector('#label-image')).visibility"
    until(browser, f"{visible} === 'visible'")
    # To the end of the list, whose image is not loaded ahead.
    left = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true}));"
    complete = "document.querySelector('#label-image').complete"
    assert browser.execute_script(f"{left} {visible.replace('return', 'return [')}, {complete}]") == [
        "hidden",
        False,
    ]
    until(browser, f"{visible} === 'visible'")


def test_an_image_that_is_gone_leaves_an_empty_board(browser, tmp_path):
    own = make_run(tmp_path)
    screen(browser, "desk")
    with Server(own) as server:
        opened(browser, server, "masks")
        pull(browser, [(10, 10), (30, 30)])
        second = next(one for one in _masks(server) if one["name"] != text(browser, "#mask-name"))
        file = tmp_path / "photographs" / "train" / second["name"]
        file.unlink()
        press(browser, "s")
        until(browser, "return /Skip it/.test(document.querySelector('#mask-state').textContent)")
        assert text(browser, "#mask-name") == second["name"]
        blank = """const board = document.querySelector('#board');
            const pixels = board.getContext('2d').getImageData(0, 0, board.width, board.height).data;
            return pixels.every(value => value === 0)"""
        assert browser.execute_script(blank)
        press(browser, "n")  # there is nothing to answer
        press(browser, "q")
        until(browser, "return /Not saved yet/.test(document.querySelector('#mask-state').textContent)")


def _masks(server):
    """Return the questions about masks."""
    import json
    from urllib.request import urlopen

    with urlopen(f"{server.address}state") as answer:
        return json.load(answer)["masks"]


def test_a_second_page_learns_what_the_first_has_answered(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "labels")
    first = browser.current_window_handle
    name = text(browser, "#label-name")
    browser.switch_to.new_window("tab")
    second = browser.current_window_handle
    opened(browser, server, "labels")
    saved(browser, lambda: press(browser, "k"))
    count = text(browser, "#label-count")
    browser.close()
    browser.switch_to.window(first)
    browser.execute_script("window.dispatchEvent(new Event('focus'))")
    until(browser, f"return document.querySelector('#label-count').textContent === '{count}'")
    assert second != first and text(browser, "#label-name") == name
    assert "Your answer: it is" in text(browser, "#label-state")
    written = {row["image"]: row["answer"] for row in csv.DictReader((run / "labels.csv").open())}
    assert written[name] == "keep"


@pytest.mark.parametrize(
    ("runs", "word"), [("[0, width * height]", "everywhere"), ("[width * height]", "nowhere")]
)
def test_a_proposal_of_the_whole_image_is_none(browser, server, runs, word):
    screen(browser, "desk")
    opened(browser, server, "masks")
    browser.execute_script(
        f"""const before = window.fetch;
            window.fetch = async (address, options) => {{
              if (!address.startsWith('proposal/')) return before(address, options);
              const [width, height] = [60, 40];
              return new Response(JSON.stringify({{runs: {runs}}}));
            }};"""
    )
    press(browser, "a")
    until(browser, f"return /looks {word} here/.test(document.querySelector('#mask-state').textContent)")
