"""Charts as text: whatever a name or a number is, it is shown as it is."""

import re

import numpy as np

from stages.report.svg_charts import Curve, histogram_chart, line_chart, look


def curve(name: str) -> Curve:
    return Curve(name=name, x=np.arange(3.0), y=np.arange(3.0))


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
    text = line_chart([curve("_plain"), curve("plain")], x="x", y="y", percent=False)
    assert "_plain" in text


def test_a_name_that_looks_like_an_id_stays_as_it_is():
    name = '" id="x url(#y)'
    text = line_chart([curve(name)], x="x", y="y", percent=False)
    shown = [found.replace("&quot;", '"') for found in re.findall(r">([^<]*)</text>", text)]
    assert name in shown


def test_few_counts_have_plain_numbers_at_their_axis():
    text = histogram_chart([(look(0), np.repeat([0.0, 1.0, 2.0], [20, 30, 50]))], x="score")
    assert "mathdefault" not in text
