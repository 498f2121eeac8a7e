"""A person's way through the review in a real browser: keys, pointer, fingers, reload, a killed server."""

from __future__ import annotations

import csv
import itertools
import shutil
import time
from collections.abc import Iterator

import numpy as np
import pytest

from review_runs import CLASSES, HEIGHT, HOSTILE, WIDTH, Server
from test_report_browser import FLAGS
from torchdoctor.data.annotations import mask_from_png
from torchdoctor.runs.review_files import read_masks

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]
SCREENS = {"desk": (1280, 800), "phone": (390, 844)}
SERIOUS = ("serious", "critical")  # what axe-core calls faults that keep people out
FIT = 8  # pixels that the page leaves around an image


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.set_capability("unhandledPromptBehavior", {"default": "ignore", "beforeUnload": "accept"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def run(reviewed, request):
    name = request.module.__name__.removeprefix("test_")  # other modules take this fixture too
    return shutil.copytree(reviewed, reviewed.with_name(f"seen_{name}"))


@pytest.fixture(scope="module")
def server(run):
    with Server(run) as started:
        yield started


def screen(browser, name, *, dark=False):
    """Make the window as large as a screen."""
    width, height = SCREENS[name]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": name == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": name == "phone"})
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


def opened(browser, server, tab):
    """Open a tab of the page and wait until its question is there."""
    browser.get("about:blank")
    browser.get(f"{server.address}#{tab}")
    until(browser, f"return document.querySelector('#{tab}') && !document.querySelector('#{tab}').hidden")
    if tab == "masks":
        until(browser, "return /marked/.test(document.querySelector('#mask-state').textContent)")
    else:
        until(browser, "return document.querySelector('#says').textContent.startsWith('The network says')")
    browser.execute_script("window.places = []; window.keys = 0")
    browser.execute_script(
        """for (const name of ['pointerdown', 'pointermove', 'pointerup'])
             document.querySelector('#board').addEventListener(
               name, event => window.places.push([name, event.offsetX, event.offsetY]), true);
           document.addEventListener('keydown', () => { window.keys += 1; }, true);"""
    )


def until(browser, script, within=30.0):
    """Wait until a script returns something true; return it."""
    deadline = time.monotonic() + within
    while not (found := browser.execute_script(script)):
        page = browser.execute_script("return document.body ? document.body.innerText : ''")
        assert time.monotonic() < deadline, f"never: {script}\n{page[:1500]}"
        time.sleep(0.03)
    return found


def text(browser, selector):
    return browser.execute_script(f"return document.querySelector('{selector}').textContent")


def press(browser, *keys):
    """Press keys one after the other."""
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def saved(browser, press_it):
    """Do something and wait until the page says that it is saved."""
    browser.execute_script("document.querySelector('#saved').textContent = ''")
    press_it()
    until(browser, "return document.querySelector('#saved').textContent === 'Saved'")


def placed(browser, points, size=(WIDTH, HEIGHT)):
    """Return where points of the image are on the screen, as the page fits it into its canvas."""
    box = browser.execute_script(
        """const board = document.querySelector('#board'), box = board.getBoundingClientRect();
           return [box.left, box.top, board.clientWidth, board.clientHeight]"""
    )
    left, top, width, height = box
    scale = min((width - FIT) / size[0], (height - FIT) / size[1])
    x, y = (width - scale * size[0]) / 2, (height - scale * size[1]) / 2
    return scale, x, y, [(round(left + x + scale * a), round(top + y + scale * b)) for a, b in points]


def pull(browser, points, *, click=False, size=(WIDTH, HEIGHT)):
    """Drag the pointer along points of the image, or click on each; return where it really was, in pixels."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    scale, x, y, places = placed(browser, points, size)
    browser.execute_script("window.places = []")
    actions = ActionBuilder(browser, duration=0)
    actions.pointer_action.move_to_location(*places[0])
    for number, place in enumerate(places):
        actions.pointer_action.move_to_location(*place)
        if click or number == 0:
            actions.pointer_action.pointer_down()
        if click:
            actions.pointer_action.pointer_up()
    if not click:
        actions.pointer_action.pointer_up()
    actions.perform()
    happened = browser.execute_script("return window.places")
    down = next(place for place, (kind, *_) in enumerate(happened) if kind == "pointerdown")
    wanted = ("pointerdown",) if click else ("pointerdown", "pointermove", "pointerup")
    inside = np.array(size) - 1e-6
    return [
        tuple(np.clip((np.array(place) - (x, y)) / scale, 0, inside).tolist())
        for kind, *place in happened[down:]
        if kind in wanted
    ]


# Slow, obvious versions of the rules in marking.js


def box_mask(start, end):
    (x1, y1), (x2, y2) = np.sort(np.array([start, end]), axis=0)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for row, column in itertools.product(range(HEIGHT), range(WIDTH)):
        mask[row, column] = row + 1 > y1 and row < y2 and column + 1 > x1 and column < x2
    return mask


def polygon_mask(corners):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for row, column in itertools.product(range(HEIGHT), range(WIDTH)):
        x, y, inside = column + 0.5, row + 0.5, False
        for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
                inside = not inside
        mask[row, column] = inside
    return mask


def stroke_mask(points, radius):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for row, column in itertools.product(range(HEIGHT), range(WIDTH)):
        centre = np.array([column + 0.5, row + 0.5])
        for start, end in itertools.pairwise([points[0], *points]):
            a, b = np.array(start), np.array(end)
            along = 0.0 if (a == b).all() else float(((centre - a) @ (b - a)) / ((b - a) @ (b - a)))
            nearest = a + min(max(along, 0), 1) * (b - a)
            mask[row, column] |= bool(((centre - nearest) ** 2).sum() <= radius**2)
    return mask


def stored(run, image, listing="masks"):
    """Return the mask file of an image as the project reads it."""
    return np.asarray(mask_from_png(run / "review" / read_masks(run, listing)[image].file)) > 0


def current_image(browser, run, server):
    """Return the id of the image whose mask is asked for."""
    name = text(browser, "#mask-name")
    import json
    from urllib.request import urlopen

    with urlopen(f"{server.address}state") as answer:
        return next(one["id"] for one in json.load(answer)["masks"] if one["name"] == name)


def test_ten_labels_by_keyboard_alone(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "labels")
    first = text(browser, "#label-name")
    answers = []
    for key in ("k", "p", "u", "k", "p", "p", "k", "u", "p"):
        given, proposed = text(browser, "#given"), text(browser, "#proposed")
        answers.append((text(browser, "#label-name"), {"k": "keep", "p": proposed, "u": "unusable"}[key]))
        assert given != proposed
        saved(browser, lambda key=key: press(browser, key))
    assert browser.execute_script("return window.keys") == 9  # one key each
    name, given = text(browser, "#label-name"), text(browser, "#given")
    other = next(one for one in CLASSES if one not in (given, text(browser, "#proposed")))
    press(browser, "c")
    until(browser, "return document.querySelector('#other').open")
    press(browser, other[:9])
    saved(browser, lambda: press(browser, "\ue007"))
    answers.append((name, other))
    written = {row["image"]: row["answer"] for row in csv.DictReader((run / "labels.csv").open())}
    assert {name: answer for name, answer in written.items() if answer} == dict(answers)
    assert text(browser, "#label-count") == "10 of 12 answered"
    # Two are taken back, and one is answered anew.
    saved(browser, lambda: press(browser, "z"))
    assert text(browser, "#label-name") == name
    saved(browser, lambda: press(browser, "z"))
    assert text(browser, "#label-name") == answers[-2][0]
    saved(browser, lambda: press(browser, "k"))
    press(browser, "s", "s")
    opened(browser, server, "labels")
    assert text(browser, "#label-count") == "9 of 12 answered" and text(browser, "#label-name") != first
    written = {row["image"]: row["answer"] for row in csv.DictReader((run / "labels.csv").open())}
    assert written[answers[-2][0]] == "keep" and written[name] == ""


def test_shapes_are_right_to_the_pixel_and_found_again(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "masks")
    image = current_image(browser, run, server)
    dragged = pull(browser, [(5.3, 4.1), (20.2, 18.8)])
    wanted = box_mask(dragged[0], dragged[-1])
    press(browser, "2")
    corners = pull(browser, [(30.2, 5.4), (52.7, 8.1), (44.4, 30.3), (36.6, 16.2)], click=True)
    press(browser, "f")
    wanted |= polygon_mask(corners)
    press(browser, "3", "]", "[", "[", "[")
    radius = int(text(browser, "#radius-text").split()[0])
    assert radius == 4
    wanted |= stroke_mask(pull(browser, [(8.5, 30.5), (20.5, 36.5), (29.5, 27.5)]), radius)
    press(browser, "4", "[")
    wanted &= ~stroke_mask(pull(browser, [(10.5, 10.5), (14.5, 10.5)]), radius - 2)
    press(browser, "1")
    pull(browser, [(2, 2), (58, 38)])
    press(browser, "z")
    pull(browser, [(50, 30), (55, 35)])
    press(browser, "z", "y", "z")
    assert "Not saved yet" in text(browser, "#mask-state")
    saved(browser, lambda: press(browser, "\ue007"))
    assert np.array_equal(stored(run, image), wanted)
    assert read_masks(run)[image].kind == "by hand"
    opened(browser, server, "masks")
    assert current_image(browser, run, server) != image
    press(browser, "q")
    until(browser, "return /Saved mask: by hand/.test(document.querySelector('#mask-state').textContent)")
    assert current_image(browser, run, server) == image
    assert text(browser, "#mask-state").startswith(f"{100 * wanted.mean():.1f} % of the image is marked")
    saved(browser, lambda: press(browser, "\ue007"))
    assert np.array_equal(stored(run, image), wanted)


def test_a_box_is_one_drag_and_one_key(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "masks")
    image = current_image(browser, run, server)
    dragged = pull(browser, [(20, 10), (40, 30)])
    saved(browser, lambda: press(browser, "\ue007"))
    assert browser.execute_script("return window.keys") == 1
    assert np.array_equal(stored(run, image), box_mask(dragged[0], dragged[-1]))
    until(browser, "return /Nothing is marked/.test(document.querySelector('#mask-state').textContent)")
    image = current_image(browser, run, server)
    press(browser, "l")  # same as last
    saved(browser, lambda: press(browser, "\ue007"))
    assert np.array_equal(stored(run, image), box_mask(dragged[0], dragged[-1]))


def test_quick_answers_and_proposals(browser, server, run):
    screen(browser, "desk")
    for keys, kind, content in (
        ("n", "by hand", "no object"),
        ("w\ue007", "by hand", "whole image"),
        ("a\ue007", "accepted proposal", "object"),
    ):
        opened(browser, server, "masks")
        image = current_image(browser, run, server)
        if keys[0] == "a":
            press(browser, "a")
            until(browser, "return /Not saved yet/.test(document.querySelector('#mask-state').textContent)")
            keys = keys[1:]
        saved(browser, lambda keys=keys: press(browser, *keys))
        assert (read_masks(run)[image].kind, read_masks(run)[image].content) == (kind, content)
    until(browser, "return /Nothing is marked/.test(document.querySelector('#mask-state').textContent)")
    image = current_image(browser, run, server)
    press(browser, "a")
    until(browser, "return /Not saved yet/.test(document.querySelector('#mask-state').textContent)")
    press(browser, "4")
    pull(browser, [(30, 20), (33, 22)])
    saved(browser, lambda: press(browser, "\ue007"))
    assert read_masks(run)[image].kind == "corrected proposal"


def test_an_object_is_cut_out_of_a_box_and_accepted_or_corrected(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "masks")
    image = current_image(browser, run, server)
    proposed = "return /A proposal: correct it/.test(document.querySelector('#mask-state').textContent)"
    nothing = "return /^Nothing is marked/.test(document.querySelector('#mask-state').textContent)"
    press(browser, "c")
    pull(browser, [(15, 6), (45, 34)])
    until(browser, proposed)
    assert image not in read_masks(run) and read_masks(run, "proposals")[image].kind == "proposal"
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[10:30, 20:40] = True
    press(browser, "z")  # takes it back, and that it is a proposal with it
    until(browser, nothing)
    press(browser, "y")
    until(browser, proposed)
    saved(browser, lambda: press(browser, "\ue007"))
    cut = stored(run, image)
    assert (cut & square).sum() / (cut | square).sum() > 0.9
    assert read_masks(run)[image].kind == "accepted proposal"
    until(browser, nothing)

    image = current_image(browser, run, server)
    browser.find_element("css selector", "[data-tool=cut]").click()
    pull(browser, [(30, 20), (30, 20)])
    until(browser, "return /around the whole object/.test(document.querySelector('#mask-state').textContent)")
    pull(browser, [(15, 6), (45, 34)])
    until(browser, proposed)
    press(browser, "1")
    corners = pull(browser, [(2, 2), (8, 8)])
    saved(browser, lambda: press(browser, "\ue007"))
    assert np.array_equal(
        stored(run, image), stored(run, image, "proposals") | box_mask(corners[0], corners[-1])
    )
    assert read_masks(run)[image].kind == "corrected proposal"
    until(browser, nothing)

    image = current_image(browser, run, server)
    press(browser, "c")
    pull(browser, [(15, 6), (45, 34)])
    until(browser, proposed)
    press(browser, "z", "1")
    corners = pull(browser, [(2, 2), (8, 8)])
    saved(browser, lambda: press(browser, "\ue007"))
    assert np.array_equal(stored(run, image), box_mask(corners[0], corners[-1]))
    assert read_masks(run)[image].kind == "by hand"  # nothing of the proposal is left


def test_what_is_not_saved_stays_while_another_image_is_open(browser, server, run):
    screen(browser, "desk")
    opened(browser, server, "masks")
    image = current_image(browser, run, server)
    dragged = pull(browser, [(3, 3), (9, 9)])
    press(browser, "s")
    until(browser, "return /Nothing is marked/.test(document.querySelector('#mask-state').textContent)")
    press(browser, "q")
    until(browser, "return /Not saved yet/.test(document.querySelector('#mask-state').textContent)")
    assert image not in read_masks(run)
    saved(browser, lambda: press(browser, "\ue007"))
    assert np.array_equal(stored(run, image), box_mask(dragged[0], dragged[-1]))


def test_fingers_draw_and_two_of_them_zoom(browser, server, run):
    screen(browser, "phone")
    opened(browser, server, "masks")
    image = current_image(browser, run, server)
    _, _, _, ((x1, y1), (x2, y2)) = placed(browser, [(20, 10), (40, 30)])

    def touch(kind, *points):
        at = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    touch("touchStart", (x1, y1))
    touch("touchStart", (x1, y1), (x2, y2))
    touch("touchMove", (x1 - 20, y1 - 20), (x2 + 20, y2 + 20))
    touch("touchEnd")
    assert "Nothing is marked" in text(browser, "#mask-state")  # zooming draws nothing
    browser.find_element("css selector", "[data-do=fit]").click()
    browser.execute_script("window.scrollTo(0, 0); window.places = []")
    scale, x, y, ((x1, y1), (x2, y2)) = placed(browser, [(20, 10), (40, 30)])
    touch("touchStart", (x1, y1))
    touch("touchMove", (x2, y2))
    touch("touchEnd")
    until(browser, "return /Not saved yet/.test(document.querySelector('#mask-state').textContent)")
    happened = [place for kind, *place in browser.execute_script("return window.places")]
    corners = [tuple(((np.array(place) - (x, y)) / scale).tolist()) for place in (happened[0], happened[-1])]
    saved(browser, lambda: browser.find_element("css selector", "[data-do=save]").click())
    assert np.array_equal(stored(run, image), box_mask(*corners))


@pytest.mark.parametrize("tab", ["labels", "masks"])
def test_no_button_of_a_phone_lies_under_another_thing(browser, server, tab):
    screen(browser, "phone")
    opened(browser, server, tab)
    covered = f"""
        const wrong = [];
        const seen = [...document.querySelectorAll('#{tab} button')].filter(one => one.offsetParent);
        const hit = one => {{
            const box = one.getBoundingClientRect();
            const x = box.left + box.width / 2, y = box.top + box.height / 2;
            return y > window.innerHeight || one.contains(document.elementFromPoint(x, y));
        }};
        for (const one of seen) {{
            one.scrollIntoView({{block: 'nearest'}});
            const middle = one.getBoundingClientRect();
            const outside = middle.bottom > window.innerHeight + 1;
            if (outside || !hit(one)) wrong.push('reached: ' + one.textContent);
        }}
        window.scrollTo(0, 0);  // what a person sees first
        for (const one of seen) if (!hit(one)) wrong.push('at first: ' + one.textContent);
        return [seen.length, wrong];
    """
    number, wrong = browser.execute_script(covered)
    assert number == {"labels": 6, "masks": 25}[tab] and wrong == []


def test_names_with_markup_stay_text(browser, server):
    screen(browser, "desk")
    for tab in ("labels", "masks"):
        opened(browser, server, tab)
        assert HOSTILE in browser.execute_script("return document.body.textContent")
        assert (
            browser.execute_script("return document.querySelectorAll('img[src=x], main script').length") == 0
        )
        from selenium.common.exceptions import NoAlertPresentException

        with pytest.raises(NoAlertPresentException):
            _ = browser.switch_to.alert


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", SCREENS)
@pytest.mark.parametrize("tab", ["labels", "masks"])
def test_the_page_fits_and_keeps_nobody_out(browser, server, tab, name, dark):
    screen(browser, name, dark=dark)
    browser.get_log("browser")
    opened(browser, server, tab)
    width = SCREENS[name][0]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # The title is cut at the edge of a phone, with an ellipsis.
    outside = f"""
        const limit = document.documentElement.clientWidth + 1;
        return [...document.querySelectorAll('#{tab} *, header *:not(#title)')]
            .filter(one => one.getBoundingClientRect().right > limit).map(one => one.outerHTML.slice(0, 80))
    """
    assert browser.execute_script(outside) == []
    if name == "phone":
        small = f"""return [...document.querySelectorAll('#{tab} button, header button')]
            .filter(one => one.offsetParent && one.getBoundingClientRect().height < 44)
            .map(one => one.textContent)"""
        assert browser.execute_script(small) == []
    assert browser.get_log("browser") == []
    assert serious_faults(browser) == []


def serious_faults(browser):
    """Return what axe-core calls serious or critical on the page, with the elements."""
    axe = pytest.importorskip("axe_selenium_python")
    checker = axe.Axe(browser)
    checker.inject()
    faults = [fault for fault in checker.run()["violations"] if fault["impact"] in SERIOUS]
    return [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in faults]


def test_faults_of_accessibility_would_be_noticed(browser, server):
    screen(browser, "desk")
    opened(browser, server, "labels")
    browser.execute_script("document.querySelector('#label-image').removeAttribute('alt')")
    assert [name for name, _ in serious_faults(browser)] == ["image-alt"]


def test_what_was_saved_outlives_a_killed_server(browser, run, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns(".lock", "review"))
    screen(browser, "desk")
    with Server(own) as first:
        opened(browser, first, "masks")
        image = current_image(browser, own, first)
        dragged = pull(browser, [(12, 8), (33, 27)])
        saved(browser, lambda: press(browser, "\ue007"))
        first.kill()
        assert np.array_equal(stored(own, image), box_mask(dragged[0], dragged[-1]))
        # Without a server the page says that nothing is saved, and keeps the drawing.
        pull(browser, [(5, 5), (10, 10)])
        press(browser, "\ue007")
        until(browser, "return /NOT saved/.test(document.querySelector('#saved').textContent)")
        assert "start torchdoctor review again" in text(browser, "#saved")
        assert "Not saved yet" in text(browser, "#mask-state")
    with Server(own) as second:
        opened(browser, second, "masks")
        press(browser, "q")
        until(browser, "return /Saved mask: by hand/.test(document.querySelector('#mask-state').textContent)")
        assert current_image(browser, own, second) == image
