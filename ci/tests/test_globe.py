"""The sphere that can be turned: what is drawn where, and what the page's script is told."""

import html
import json
import re

import numpy as np
import pytest

from riembn import pages

FRONT, BACK = [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]


@pytest.fixture
def shown(monkeypatch):
    """What a globe puts on the page."""
    pages = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: pages.append(data["text/html"]))

    def show(globe):
        globe.show(name="sphere", caption="What lies where?", alt="A sphere.")
        return pages[-1]

    return show


def pictures(page):
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def scene(page):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])


def test_points_behind_the_sphere_are_drawn_before_it_and_paler(shown):
    for at, behind in ((FRONT, False), (BACK, True)):
        globe = pages.Globe(azimuth=10, elevation=5)
        globe.point(at, "y")
        for picture in pictures(shown(globe)):
            dot, ball = picture.index("<circle cx"), picture.index("<circle r")
            assert (dot < ball) == behind
            assert ("opacity:0.3" in picture[dot : dot + 300].split("/>")[0]) == behind


def test_a_curve_around_the_sphere_is_cut_where_it_disappears(shown):
    t = np.linspace(0, 2 * np.pi, 121)[:, None]
    circle = np.cos(t) * FRONT + np.sin(t) * np.array([0.0, 1.0, 0.0])
    globe = pages.Globe(azimuth=0, elevation=30)
    globe.curve(circle, color=pages.ORANGE)
    opacities = re.findall(rf"<path [^>]*{pages.ORANGE}[^>]*opacity:([\d.]+)", pictures(shown(globe))[0])
    assert sorted(opacities) == ["0.3", "1", "1"]


def test_an_arrow_off_the_sphere_is_seen_before_it(shown):
    globe = pages.Globe(azimuth=0, elevation=0)
    globe.arrow(FRONT, [0.0, 0.5, 0.0], "h", color=pages.ORANGE)
    picture = pictures(shown(globe))[0]
    ball = picture.index("<circle r")
    found = [match.start() > ball for match in re.finditer(pages.ORANGE, picture)]
    assert found and all(found)


def test_an_arrow_without_length_is_no_error(shown):
    globe = pages.Globe()
    globe.arrow(FRONT, [0.0, 0.0, 0.0], "zero")
    assert "nan" not in shown(globe)


def test_tangent_plane_touches_the_sphere(shown):
    globe = pages.Globe()
    globe.plane(FRONT, along=[0.0, 1.0, 1.0], size=0.5)
    (plane,) = scene(shown(globe))["items"]
    corners = np.array(plane["points"])
    np.testing.assert_allclose(corners @ FRONT, 1)
    np.testing.assert_allclose(corners.mean(axis=0), FRONT, atol=1e-4)


def test_script_is_told_what_the_picture_shows(shown):
    globe = pages.Globe(azimuth=-40, elevation=12, reach=1.3)
    globe.point(FRONT, "<y>", hollow=True)
    globe.arrow(FRONT, [0.0, 0.5, 0.0], "h", faint=True, toward=(1, 0))
    page = shown(globe)
    told = scene(page)
    assert told["view"] == [-40, 12] and told["reach"] == 1.3
    assert [item["label"] for item in told["items"]] == ["<y>", "h"]
    assert len(pictures(page)) == 2 and all(html.escape("<y>") in picture for picture in pictures(page))
    assert "<y>" not in page.replace("\\u003cy>", "")


def test_walk_is_told_to_the_script_and_leaves_the_picture_alone(shown):
    globe = pages.Globe()
    globe.point(FRONT, "y")
    before = pictures(shown(globe))
    globe.walk([FRONT, [0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]] * 2, [0.0, np.pi / 2])
    page = shown(globe)
    assert pictures(page) == before
    assert scene(page)["walk"] == {"points": [FRONT, [0, 1, 0]], "vectors": [[0, 0, 1]] * 2, "angles": [0, 1.5708]}
    with pytest.raises(ValueError, match="walk: 1 points, 2 vectors, 1 angles; each place needs its vector"):
        globe.walk([FRONT], [FRONT, BACK], [0.0])


def test_the_same_globe_gives_the_same_page_and_loads_nothing(shown):
    def page():
        globe = pages.Globe()
        globe.curve([FRONT, [0.0, 1.0, 0.0]], "way")
        return shown(globe)

    assert page() == page()
    assert set(re.findall(r"https?://[^\"' ]+", page())) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("missing", ["caption", "alt"])
def test_a_globe_needs_words(missing):
    words = {"caption": "What?", "alt": "A sphere.", missing: " "}
    with pytest.raises(ValueError, match="needs a caption, and alt"):
        pages.Globe().show(name="sphere", **words)


def test_what_a_globe_cannot_draw_is_refused():
    with pytest.raises(TypeError, match="colour"):
        pages.Globe().point(FRONT, colour=pages.BLUE)
