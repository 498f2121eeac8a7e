"""The server of a review answers its own page and nobody else; each attack here meets the running server."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import sys
import time
from urllib.parse import quote

import numpy as np
import pytest

from review_runs import CLASSES, HEIGHT, HOSTILE, WIDTH, Server
from torchdoctor import InputError, Suspects
from torchdoctor.data.annotations import mask_from_png
from torchdoctor.data.pixels import Preprocessing, fit
from torchdoctor.review import serve
from torchdoctor.review.mask_runs import mask_of_runs, runs_of
from torchdoctor.review.security import HEADERS, TOKEN_BYTES, new_token
from torchdoctor.review.serve import bound_socket, is_loopback, served_hosts
from torchdoctor.review.viewer import seen_region
from torchdoctor.runs.folder import seal
from torchdoctor.runs.review_files import read_masks


@pytest.fixture(scope="module")
def run(reviewed):
    """A finished run of these tests' own."""
    return shutil.copytree(reviewed, reviewed.with_name("served"))


@pytest.fixture(scope="module")
def server(run):
    """A server of its review."""
    with Server(run) as started:
        yield started


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run, in which no server works."""
    shutil.copytree(run, tmp_path / "own", ignore=shutil.ignore_patterns(".lock", "review"))
    return tmp_path / "own"


def ask(server, path, method="GET", body=None, *, token=None, headers=None, without=()):
    """Send one request as the page does, but for what is changed; return status, headers and content."""
    own = f"{server.host}:{server.port}"
    sent = {"Host": own}
    if method != "GET":
        sent |= {"Origin": f"http://{own}", "Content-Type": "application/json", "X-Torchdoctor-Review": "1"}
    sent |= headers or {}
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    if content is not None:
        sent["Content-Length"] = str(len(content))
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    try:
        token = server.token if token is None else token
        connection.putrequest(method, f"/{token}/{path}", skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if name not in without:
                connection.putheader(name, value)
        connection.endheaders(content)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def state(server):
    """Return what the page begins with."""
    return json.loads(ask(server, "state")[2])


# What the page gets


def test_the_page_and_its_questions(server):
    status, headers, page = ask(server, "")
    assert status == 200 and b"<script" in page and b"http" not in page.replace(b"http-equiv", b"")
    assert headers["content-type"].startswith("text/html")
    known = state(server)
    assert known["classes"] == list(CLASSES) and len(known["labels"]) == 12
    chances = [one["probability"] for one in known["labels"]]
    assert chances == sorted(chances, reverse=True)
    assert {one["category"] for one in known["masks"][:3]} == set(CLASSES)  # one of each category in turn
    doubted = {one["id"] for one in known["labels"]}
    for name in CLASSES:
        late = [one["id"] in doubted for one in known["masks"] if one["category"] == name]
        assert late == sorted(late) and any(late)  # images whose labels look wrong come last
    for name in ("main", "server", "labels", "masks", "canvas", "marking"):
        status, headers, _ = ask(server, f"{name}.js")
        assert status == 200 and headers["content-type"].startswith("text/javascript")


def test_images_evidence_and_what_the_network_says(server):
    known = state(server)
    image = known["masks"][0]["id"]
    status, headers, content = ask(server, f"image/{image}")
    assert status == 200 and headers["content-type"] == "image/png" and content.startswith(b"\x89PNG")
    status, _, content = ask(server, f"evidence/{image}")
    assert status == 200 and content.startswith(b"\x89PNG")
    said = json.loads(ask(server, f"says/{image}")[2])
    assert {one["category"] for one in said} == set(CLASSES)
    assert sum(one["probability"] for one in said) == pytest.approx(1)
    found = json.loads(ask(server, f"mask/{image}")[2])
    assert (found["width"], found["height"], found["runs"]) == (WIDTH, HEIGHT, None)
    proposal = mask_of_runs(json.loads(ask(server, f"proposal/{image}")[2])["runs"], WIDTH, HEIGHT)
    assert proposal.any() and not proposal.all()


def test_a_label_and_a_mask_are_on_the_disk_when_the_answer_comes(server, run):
    label = state(server)["labels"][-1]
    status, _, content = ask(server, f"answer/label/{label['id']}", "POST", {"answer": "keep"})
    assert status == 200 and json.loads(content)["answer"] == "keep"
    assert ",keep\n" in (run / "labels.csv").read_text()
    ask(server, f"answer/label/{label['id']}", "POST", {"answer": ""})
    assert ",keep\n" not in (run / "labels.csv").read_text()
    image = state(server)["masks"][-1]["id"]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:9, 5:50] = True
    proposed = json.loads(ask(server, f"proposal/{image}")[2])["runs"]
    for body, kind in (
        ({"runs": runs_of(mask)}, "by hand"),
        ({"runs": runs_of(mask), "proposed": True}, "corrected proposal"),
        ({"runs": proposed, "proposed": True}, "accepted proposal"),
        ({"runs": proposed, "proposed": False}, "by hand"),
        ({"noObject": True}, "by hand"),
        ({"runs": runs_of(mask)}, "by hand"),
    ):
        status, _, content = ask(server, f"answer/mask/{image}", "POST", body)
        assert status == 200 and json.loads(content)["kind"] == kind
        assert read_masks(run)[image].kind == kind
    record = read_masks(run)[image]
    assert np.array_equal(np.asarray(mask_from_png(run / "review" / record.file)) > 0, mask)
    assert json.loads(ask(server, f"mask/{image}")[2])["runs"] == runs_of(mask)
    status, _, content = ask(server, f"answer/mask/{image}", "POST", {"remove": True})
    assert status == 200 and image not in read_masks(run)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"{", b"[" * 100_000, {"answer": None}, {"answer": True}, {"answer": 3},
        {"answer": -1}, {"answer": 1.0}, {"answer": "hound"}, {"answer": {"a": 1}}, {},
    ],
)  # fmt: skip
def test_answers_that_are_none_are_refused(server, run, body):
    before = (run / "labels.csv").read_bytes()
    label = state(server)["labels"][0]["id"]
    status, headers, content = ask(server, f"answer/label/{label}", "POST", body)
    assert status == 422 and content and headers["content-type"].startswith("text/plain")
    assert (run / "labels.csv").read_bytes() == before


@pytest.mark.parametrize(
    "body",
    [
        {}, {"runs": None}, {"runs": []}, {"runs": [WIDTH * HEIGHT]}, {"runs": [0, WIDTH * HEIGHT + 1]},
        {"runs": [-1, WIDTH * HEIGHT + 1]}, {"runs": [10**30]}, {"runs": [0.5, WIDTH * HEIGHT - 0.5]},
        {"runs": ["1"]}, {"runs": {"0": 1}}, {"noObject": "yes"}, {"remove": 1},
    ],
)  # fmt: skip
def test_masks_that_are_none_are_refused(server, run, body):
    image = state(server)["masks"][0]["id"]
    status, _, content = ask(server, f"answer/mask/{image}", "POST", body)
    assert status == 422 and content
    assert image not in read_masks(run)


SQUARE = (slice(10, 30), slice(20, 40))  # where the object of each photograph is


def test_a_cut_out_object_is_a_proposal_until_a_person_takes_it(server, run):
    image = state(server)["masks"][-2]["id"]
    box = [15, 6, 45, 34]
    status, _, content = ask(server, f"cut-out/{image}", "POST", {"box": box})
    assert status == 200
    runs = json.loads(content)["runs"]
    mask = mask_of_runs(runs, WIDTH, HEIGHT)
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[SQUARE] = True
    assert (mask & square).sum() / (mask | square).sum() > 0.9
    assert image not in read_masks(run)
    record = read_masks(run, "proposals")[image]
    assert record.kind == "proposal"
    assert np.array_equal(np.asarray(mask_from_png(run / "review" / record.file)) > 0, mask)
    assert json.loads(ask(server, f"proposal/{image}")[2])["runs"] == runs
    more = mask.copy()
    more[:3, :3] = True  # outside of the box
    for sent, kind in ((mask, "accepted proposal"), (more, "corrected proposal")):
        body = {"runs": runs_of(sent), "proposed": True}
        answer = json.loads(ask(server, f"answer/mask/{image}", "POST", body)[2])
        assert answer["kind"] == read_masks(run)[image].kind == kind
    ask(server, f"answer/mask/{image}", "POST", {"remove": True})


@pytest.mark.parametrize(
    "body",
    [
        {}, {"box": None}, {"box": "1234"}, {"box": [1, 2, 3]}, {"box": [1, 2, 3, "4"]},
        {"box": [5, 5, 5, 9]}, {"box": [0, 0, WIDTH + 1, 5]}, {"box": [-1, 0, 5, 5]},
        {"box": [0, 0, True, 5]}, {"box": [0, 0, 1e400, 5]},
        {"box": [9, 9, 3, 3]}, {"box": {"left": 1}}, {"box": [10**400, 0, 5, 5]}, b"[1, 2, 3, 4]",
    ],
)  # fmt: skip
def test_boxes_that_are_none_are_refused(server, run, body):
    image = state(server)["masks"][0]["id"]
    before = read_masks(run, "proposals")
    status, _, content = ask(server, f"cut-out/{image}", "POST", body)
    assert status == 422
    assert b"expected" in content and (b"right and bottom in pixels" in content or isinstance(body, bytes))
    assert read_masks(run, "proposals") == before


# Attacks


def test_every_answer_says_what_a_browser_may_do_with_it(server):
    for path, expected in (("", 200), ("state", 200), ("image/99999", 422), ("nowhere", 404)):
        status, headers, _ = ask(server, path)
        assert status == expected
        for name, value in HEADERS.items():
            assert headers[name] == value
        assert "unsafe" not in headers["content-security-policy"] and "server" not in headers
    assert "script-src 'self'" in HEADERS["content-security-policy"]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example",
     "localhost", "[::1]:{port}", "127.0.0.1:{port}@evil.example", "", "0.0.0.0:{port}", "127.1:{port}"],
)  # fmt: skip
def test_other_names_of_the_server_are_refused(server, host):
    """A name that an attacker lets point to this machine (DNS rebinding) is in the header Host."""
    headers = {"Host": host.format(port=server.port)}
    status, _, content = ask(server, "state", headers=headers)
    assert status in (400, 421) and b"labels" not in content
    headers |= {"Origin": f"http://{headers['Host']}"}
    label = state(server)["labels"][0]["id"]
    status, _, _ = ask(server, f"answer/label/{label}", "POST", {"answer": "keep"}, headers=headers)
    assert status in (400, 421)


def test_its_own_names_are_served(server):
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}", f"LOCALHOST:{server.port}"):
        assert ask(server, "state", headers={"Host": host})[0] == 200


def test_requests_without_the_token_are_refused(server):
    short, changed = server.token[:-1], ("A" if server.token[0] != "A" else "B") + server.token[1:]
    for token in (
        "",
        short,
        changed,
        server.token + "x",
        "state",
        quote("é"),
        "%00",
        server.token.swapcase(),
    ):
        for path in ("", "state", "image/0", "main.js"):
            status, _, content = ask(server, path, token=token)
            assert status in (400, 403) and b"labels" not in content and b"script" not in content
        label = state(server)["labels"][0]["id"]
        assert ask(server, f"answer/label/{label}", "POST", {"answer": "keep"}, token=token)[0] in (400, 403)
        box = {"box": [1, 1, 9, 9]}
        assert ask(server, f"cut-out/{label}", "POST", box, token=token)[0] in (400, 403)


def test_the_token_has_256_bits_and_is_new_each_time():
    assert TOKEN_BYTES * 8 == 256 and len({new_token() for _ in range(50)}) == 50
    assert all(len(new_token()) >= 43 for _ in range(50))


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://127.0.0.1:1",
     "http://localhost:{port}", "http://127.0.0.1:{port}.evil.example", "file://", ""],
)  # fmt: skip
def test_writes_of_other_origins_are_refused(server, run, origin):
    before = (run / "labels.csv").read_bytes()
    headers = {"Origin": origin.format(port=server.port)}
    label = state(server)["labels"][0]["id"]
    status, _, _ = ask(server, f"answer/label/{label}", "POST", {"answer": "keep"}, headers=headers)
    assert status == 403 and (run / "labels.csv").read_bytes() == before
    assert ask(server, "state", headers=headers)[0] == 403


@pytest.mark.parametrize(
    ("without", "headers", "status"),
    [
        (("Origin",), {}, 403),
        (("X-Torchdoctor-Review",), {}, 403),
        ((), {"X-Torchdoctor-Review": "2"}, 403),
        (("Content-Type",), {}, 415),
        ((), {"Content-Type": "text/plain"}, 415),
        ((), {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ((), {"Content-Type": "multipart/form-data; boundary=application/json"}, 415),
    ],
)
def test_writes_that_a_form_could_send_are_refused(server, run, without, headers, status):
    before = (run / "labels.csv").read_bytes()
    path = f"answer/label/{state(server)['labels'][0]['id']}"
    assert ask(server, path, "POST", {"answer": "keep"}, without=without, headers=headers)[0] == status
    path, box = f"cut-out/{state(server)['masks'][0]['id']}", {"box": [1, 1, 9, 9]}
    assert ask(server, path, "POST", box, without=without, headers=headers)[0] == status
    assert (run / "labels.csv").read_bytes() == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "X"])
def test_other_methods_are_refused(server, method):
    path = f"answer/label/{state(server)['labels'][0]['id']}"
    assert ask(server, path, method, {"answer": "keep"})[0] in (400, 405)
    assert ask(server, path)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "image/../../etc/passwd", "image/..%2f..%2fetc%2fpasswd", "image/%2e%2e/state", "../state",
        "image//etc/passwd", "image/1.png", "image/-1", "image/1e3", "image/0x1", "image/1%00",
        "image/\u0661", "image/99999999999999999999999", "image/", "page/page.html", "page.html",
        "..%5c..%5cwindows", "//evil/x",
        "evidence/99999", "says/99999", "mask/99999", "proposal/99999", "cut-out/99999",
    ],
)  # fmt: skip
def test_paths_lead_to_images_of_the_review_and_nowhere_else(server, path):
    status, _, content = ask(server, quote(path, safe="/%"))
    assert status in (400, 404, 405, 422), (path, status)
    assert b"root:" not in content and b"PNG" not in content and b"labels" not in content


def test_images_that_are_not_asked_about_are_not_shown(server):
    known = state(server)
    beside = {one for label in known["labels"] for one in (*label["likeGiven"], *label["likeProposed"])}
    asked = {one["id"] for one in (*known["labels"], *known["masks"])} | beside
    others = [one for one in range(60) if one not in asked]
    assert all(ask(server, f"image/{one}")[0] == 422 for one in others)
    only_labels = next((one for one in asked if one not in {mask["id"] for mask in known["masks"]}), None)
    if only_labels is not None:
        assert ask(server, f"answer/mask/{only_labels}", "POST", {"noObject": True})[0] == 422
        assert ask(server, f"cut-out/{only_labels}", "POST", {"box": [1, 1, 9, 9]})[0] == 422


def test_large_bodies_are_refused(server):
    path = f"answer/mask/{state(server)['masks'][0]['id']}"
    assert ask(server, path, "POST", None, headers={"Content-Length": str(10**12)})[0] == 413
    # A body whose length is not told beforehand is cut off while it arrives.
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        own = f"{server.host}:{server.port}"
        connection.sendall(
            f"POST /{server.token}/{path} HTTP/1.1\r\nHost: {own}\r\nOrigin: http://{own}\r\n"
            "Content-Type: application/json\r\nX-Torchdoctor-Review: 1\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        answer = b""
        try:
            for _ in range(40):
                connection.sendall(chunk)
        except OSError:
            pass  # the server has closed the connection
        try:
            answer = connection.recv(4096)
        except OSError:
            answer = b"closed"
        assert answer == b"closed" or b" 413 " in answer
    assert ask(server, "state")[0] == 200
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 10**6)
        try:
            answer = connection.recv(4096)
        except OSError:
            answer = b" 400 "
        assert b" 400 " in answer


def test_slow_clients_do_not_keep_the_others_waiting(own, monkeypatch):
    assert serve.HEADER_SECONDS <= 10
    monkeypatch.setattr(serve, "HEADER_SECONDS", 2.0)  # in the forked server too
    with Server(own, forked=True) as server:
        slow = [socket.create_connection((server.host, server.port), timeout=30) for _ in range(20)]
        try:
            for connection in slow[:10]:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
            begun = time.monotonic()
            assert ask(server, "state")[0] == 200
            assert time.monotonic() - begun < 5
            for connection in slow:
                connection.settimeout(20)
                assert connection.recv(10) == b""  # closed by the server
            assert time.monotonic() - begun < 20
        finally:
            for connection in slow:
                connection.close()


@pytest.mark.slow
def test_a_body_that_does_not_arrive_is_given_up(server):
    own, path = f"{server.host}:{server.port}", f"answer/mask/{state(server)['masks'][0]['id']}"
    with socket.create_connection((server.host, server.port), timeout=40) as connection:
        connection.sendall(
            f"POST /{server.token}/{path} HTTP/1.1\r\nHost: {own}\r\nOrigin: http://{own}\r\n"
            "Content-Length: 99\r\nContent-Type: application/json\r\n"
            "X-Torchdoctor-Review: 1\r\n\r\n{".encode()
        )
        assert b" 408 " in connection.recv(4096)


def test_headers_that_come_twice_are_refused(server):
    own = f"{server.host}:{server.port}"
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(
            f"GET /{server.token}/state HTTP/1.1\r\nHost: {own}\r\nHost: evil.example\r\n\r\n".encode()
        )
        assert b" 400 " in connection.recv(4096)


def test_markup_in_names_stays_text(server):
    status, headers, content = ask(server, "state")
    assert status == 200 and headers["content-type"] == "application/json"
    assert HOSTILE in {one["category"] for one in json.loads(content)["masks"]}
    assert any("<script>" in one["name"] for one in json.loads(content)["masks"])
    assert HOSTILE.encode() not in ask(server, "")[2]


# Where it listens, how it ends


def test_where_it_listens():
    with bound_socket("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        assert is_loopback(opened) and port > 0
        assert served_hosts(opened, "127.0.0.1") == (f"127.0.0.1:{port}", f"localhost:{port}")
        opened.listen()
        with pytest.raises(InputError, match=f"--port {port}: cannot be served"):
            bound_socket("127.0.0.1", port)
    with bound_socket("0.0.0.0", 0) as opened:
        port = opened.getsockname()[1]
        hosts = served_hosts(opened, "0.0.0.0")
        assert not is_loopback(opened) and f"{socket.gethostname().lower()}:{port}" in hosts
        assert f"evil.example:{port}" not in hosts
    with pytest.raises(InputError, match="cannot be served"):
        bound_socket("192.0.2.1", 0)


def test_a_second_server_on_the_run_is_refused(server, run, command):
    code, _, said = command("review", run, "--no-browser")
    assert code == 2 and "is in use by process" in said and str(server.process.pid) in said
    code, _, said = command("review", run, "--propose")
    assert code == 2 and "is in use" in said


def test_it_ends_cleanly_and_says_what_was_answered(own):
    with Server(own, ("--no-browser", "--json"), forked=True) as started:
        image = state(started)["masks"][0]["id"]
        ask(started, f"answer/mask/{image}", "POST", {"noObject": True})
        begun = time.monotonic()
        started.process.send_signal(signal.SIGINT)
        out = started.process.stdout.read()
        assert started.process.wait(20) == 0 and time.monotonic() - begun < 10
    record = json.loads(out)
    assert record["masks"]["no object"] == 1 and record["labels"]["asked"] == 12
    assert not (own / ".lock").exists() and "Traceback" not in "".join(started.said)
    with Server(own, forked=True) as again:
        assert again.token != started.token
        ask(again, f"answer/mask/{image}", "POST", {"remove": True})
        again.kill()
    with Server(own, forked=True) as after_a_kill:
        assert image not in {one["id"] for one in state(after_a_kill)["masks"] if one["kind"]}


def test_another_address_says_what_that_means(own):
    with Server(own, ("--no-browser", "--host", "0.0.0.0"), forked=True) as started:
        assert "other machines can reach this page" in "".join(started.said)
        assert ask(started, "state")[0] == 200
        assert ask(started, "state", headers={"Host": "evil.example"})[0] == 421


def test_runs_that_cannot_be_reviewed(run, own, command):
    code, _, said = command("review", run.parent / "base", "--no-browser")
    assert code == 2 and "holds no diagnosis" in said
    code, _, said = command("review", run.parent / "photographs", "--no-browser")
    assert code == 2 and "not finished, or is no run folder" in said
    code, _, said = command("review", own, "--propose", "--port", "80")
    assert code == 2 and "--propose opens no page" in said
    code, _, said = command("review", own, "--no-browser", "--port", "99999")
    assert code == 2 and "--port 99999" in said
    one, other = (run.parent / "photographs" / "train" / "red" / name for name in ("1.png", "2.png"))
    before = one.read_bytes()
    try:
        one.write_bytes(other.read_bytes())
        code, _, said = command("review", own, "--no-browser")
        assert code == 2 and "are not those of run" in said and "an image of them has changed" in said
        one.unlink()
        code, _, said = command("review", own, "--no-browser")
        assert code == 2 and "they were 39 and are 38" in said
    finally:
        one.write_bytes(before)


def test_a_run_that_names_files_from_another_folder_says_where_to_start(run, own, command, monkeypatch):
    config = own / "config.yaml"
    config.write_text(config.read_text().replace(f"{run.parent}/", ""))
    seal(own)
    code, _, said = command("review", own, "--propose")
    assert code == 2 and "no such file" in said and "start this one there as well" in said
    monkeypatch.chdir(run.parent)
    code, _, said = command("review", own, "--propose")
    assert code == 0


def test_without_the_extra_the_error_says_how_to_get_it(own, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdoctor.review.serve", None)
    code, _, said = command("review", own, "--no-browser")
    assert code == 2 and "pip install 'torchdoctor[review]'" in said


def test_a_run_without_questions_is_refused(own, command):
    Suspects((), 39, 0.0, 90.0).save(own)
    diagnosis = own / "diagnosis" / "diagnosis.json"
    record = json.loads(diagnosis.read_text())
    record["sifting"]["low"] = [[] for _ in CLASSES]
    diagnosis.write_text(json.dumps(record))
    seal(own)
    code, _, said = command("review", own, "--no-browser")
    assert code == 2 and "has nothing to review" in said


def test_proposals_are_stored_apart(own, command):
    code, out, _ = command("review", own, "--propose", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["proposed"] > 0 and read_masks(own) == {}
    proposals = read_masks(own, "proposals")
    assert len(proposals) == record["proposals"] == record["proposed"]
    assert {one.kind for one in proposals.values()} == {"proposal"}
    assert json.loads(command("review", own, "--propose", "--json")[1])["proposed"] == 0


@pytest.mark.parametrize(
    "how",
    [
        Preprocessing(32, (0.5,), (0.5,)), Preprocessing(32, (0.5,), (0.5,), "squash"),
        Preprocessing(32, (0.5,), (0.5,), crop_share=0.8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [(60, 40), (40, 60), (32, 32), (301, 100)])
def test_the_part_of_an_image_that_the_network_sees(how, size):
    """A spot in the image appears where the region says, within a pixel of the network's square."""
    from PIL import Image

    region = seen_region(*size, how)
    for across, down in ((0.25, 0.25), (0.5, 0.75), (0.8, 0.4)):
        x = region.left + across * (region.right - region.left)
        y = region.top + down * (region.bottom - region.top)
        rows, columns = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
        spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 18)
        image = Image.fromarray((255 * spot).astype(np.uint8)).convert("RGB")
        pixels = fit(image, None, how.image_size, 1, how.resize, how.crop_share)[0][0].double().numpy()
        rows, columns = np.mgrid[0:32, 0:32] + 0.5
        centre = [(pixels * place).sum() / pixels.sum() for place in (columns, rows)]
        assert centre == pytest.approx([32 * across, 32 * down], abs=1.0)
