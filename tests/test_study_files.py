"""Study files: what is wrong is said with its line, what is right is expanded into points."""

import itertools
import json
import os
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fibration as fb
from fibration.errors import MissingFileError, StudyFileError
from fibration.solvers._ode import METHODS
from fibration.study._complaints import line_numbers
from fibration.study._document import identity
from fibration.study._manifest import run_id
from fibration.study._schema import Method

GOOD = """
name = "two widths"
seeds = [3, 1]

[data]
source = "iris"
samples = 20

[network]
kind = "mlp"
hidden = [
    4,
]

[runs.flow]
kind = "flow"
t1 = 1.0

[runs.slow]
kind = "descent"
stable_fraction = 0.5
t1 = 1.0

[sweep]
"network.hidden" = [[4], [8]]
"runs.slow.stable_fraction" = [0.1, 0.5, 0.9]
"""


def write(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_points_are_the_product_of_axes_and_seeds(tmp_path):
    study = fb.study.read_study(write(tmp_path, GOOD))
    assert list(study.axes) == ["network.hidden", "runs.slow.stable_fraction", "seed"]
    found = [(p["network"]["hidden"], p["runs"]["slow"]["stable_fraction"], p["seed"]) for p in study.points]
    assert found == list(itertools.product([[4], [8]], [0.1, 0.5, 0.9], [3, 1]))
    assert len({run_id(identity(point)) for point in study.points}) == 12
    assert json.loads(json.dumps(study.points[0])) == study.points[0]


CASES = [
    ('source = "iris"', 'source = "iriss"', 6, ["data.source = 'iriss'", "wine", "did you mean 'iris'?"]),
    ("samples = 20", "samples = -2", 7, ["data.samples = -2", "greater than or equal to 1"]),
    ("samples = 20", "sampels = 2", 7, ["unknown key 'data.sampels'", "samples, source", "did you mean 'samples'?"]),
    ("    4,", "    4, -8,", 11, ["network.hidden.1 = -8"]),
    ('kind = "mlp"', 'kind = "mlp"\nactivation = "tahn"', 11, ["network.activation = 'tahn'", "did you mean 'tanh'?"]),
    ('kind = "mlp"', 'kind = "mpl"', 10, ["network.kind = 'mpl'", "deep_linear", "did you mean 'mlp'?"]),
    ('kind = "mlp"', "", 9, ["no key 'network.kind'", "add `kind"]),
    ("seeds = [3, 1]", "seeds = [3, 3]", 3, ["seed lists a value twice"]),
    ("seeds = [3, 1]", "seed = 3", None, ["`seeds`"]),
    ("seeds = [3, 1]", "seeds = [-1]", 3, ["seeds"]),
    ('name = "two widths"', "", None, ["no key 'name'"]),
    ("[runs.flow]\nkind", "[runs.flow]\ntolerance = 1\nkind", 16, ["unknown key 'runs.flow.tolerance'", "rtol"]),
    ('[runs.flow]\nkind = "flow"\nt1 = 1.0', '[runs.flow]\nkind = "flow"', 15, ["no key 'runs.flow.t1'"]),
    ("stable_fraction = 0.5\n", "", 19, ["stable_fraction", "step_size"]),
    ("stable_fraction = 0.5\n", 'stable_fraction = 0.5\nof = "nobody"\n', None, ["of = 'nobody'", "gradient flow"]),
    ("samples = 20", 'samples = "20"', 7, ["data.samples = '20'", "integer"]),
    ("samples = 20", "samples = 20\nstandardize = 1", 8, ["data.standardize = 1", "boolean"]),
    ("t1 = 1.0\n\n[runs.slow]", "t1 = nan\n\n[runs.slow]", 17, ["runs.flow.t1 = nan"]),
    ('"network.hidden" =', '"network.hiden" =', 25, ["unknown key 'network.hiden'", "did you mean 'hidden'?"]),
    ('"network.hidden" =', '"netwrok.hidden" =', 25, ["[sweep] varies 'netwrok.hidden'", "did you mean 'network'?"]),
    ("[[4], [8]]", "[[4], [-8]]", 25, ["network.hidden.0 = -8"]),
    ("[[4], [8]]", "[[4], [4]]", 25, ["lists a value twice"]),
    ("[[4], [8]]", "[]", 25, ["sweep.network.hidden"]),
    ("[0.1, 0.5, 0.9]", "[0.1, true, [2]]", 26, ["runs.slow.stable_fraction = True"]),
    ("[0.1, 0.5, 0.9]", "[0.1, 0.5, 0.9", None, ["TOML"]),
    ('[data]\nsource = "iris"', '[data]\nsource = "csv"\npath = "no.csv"\ntarget = "y"', 9, ["samples"]),
    ("seeds = [3, 1]", "seeds = 0", 3, ["seeds = 0. Needed: greater than or equal to 1, or a list"]),
    ("seeds = [3, 1]", "seeds = {}", 3, ["seeds = {}. Needed: an integer, or a list"]),
    ("[runs.slow]", '[runs."a/b"]', 19, ["runs.a/b", "letters, digits"]),
    ('"runs.slow.stable', '"runs.slwo.stable', 26, ["no table 'runs.slwo'", "flow, slow", "did you mean 'slow'?"]),
    ('"network.hidden" = [[4], [8]]', '"network.kind" = ["mpl"]', 25, ["network.kind = 'mpl'", "did you mean 'mlp'?"]),
    ('"network.hidden" =', "network.hidden =", 25, ['in quotation marks: "network.hidden"']),
    ('"network.hidden" = [[4], [8]]', '"network.hidden.0" = [3, 5]', 25, ["'network.hidden' is no table"]),
    ('"network.hidden" = [[4], [8]]', '"budget.seconds" = [1.0, 2.0]', 25, ["results do not depend on it"]),
    ('"network.hidden" = [[4], [8]]', '"network.scale" = [1, 1.0]', 25, ["the same point for (1, 0.1)"]),
    ("[[4], [8]]", '[[4], [8]]\n"network" = [{ kind = "mlp", hidden = [4] }]', 25, ["takes its place"]),
    ("t1 = 1.0\n\n[runs.slow]", 't1 = 1.0\nmethod = "Tsit5"\n\n[runs.slow]', 18, ["did you mean 'tsit5'?"]),
    ("samples = 20", f"samples = {10**20}", 7, ["less than or equal to"]),
    ("samples = 20", f"samples = {'9' * 5000}", None, ["digits"]),
    ('name = "two widths"', 'name = "   "', 2, ["a line of text"]),
    ('name = "two widths"', 'name = "a\\u001b[31m"', 2, ["a line of text"]),
    ("[runs.flow]", "[runs.diagnostics]", 15, ["call it something else"]),
    ("[runs.slow]", f"[runs.{'a' * 9000}]", 19, ["…", "at most 64"]),
    ("samples = 20", f"samples = {'[' * 3000}{']' * 3000}", None, ["study.toml"]),
    ("stable_fraction = 0.5\n", 'stable_fraction = 0.5\nof = "nobody"\n', 19, ["gradient flow"]),
    ("[sweep]", '[diagnostics]\ncanonical = { index_set = "l2" }\n[sweep]', 25, ["index_set", "did you mean"]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1][:30].replace("\n", " "))
def test_what_is_wrong_is_named_with_its_line(tmp_path, case):
    old, new, line, said = case
    assert old in GOOD
    with pytest.raises(StudyFileError) as caught:
        fb.study.read_study(write(tmp_path, GOOD.replace(old, new, 1)))
    message = str(caught.value)
    assert len(message) < 1500
    for words in said:
        assert words in message
    assert line is None or f"study.toml:{line}:" in message


def test_several_faults_are_told_at_once(tmp_path):
    text = GOOD.replace("samples = 20", "samples = 0").replace('kind = "mlp"', 'kind = "mlp"\nwdith = 3')
    with pytest.raises(StudyFileError) as caught:
        fb.study.read_study(write(tmp_path, text))
    assert "study.toml:7" in str(caught.value)
    assert "study.toml:11" in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingFileError, match="fibration new"):
        fb.study.read_study(tmp_path / "none.toml")
    text = GOOD.replace('source = "iris"\nsamples = 20', 'source = "csv"\npath = "no.csv"\ntarget = "y"')
    with pytest.raises(MissingFileError, match=r"study\.toml:7.*no\.csv"):
        fb.study.read_study(write(tmp_path, text))


def test_a_data_file_is_known_by_its_contents_and_not_by_its_place(tmp_path):
    text = GOOD.replace('source = "iris"\nsamples = 20', 'source = "csv"\npath = "d.csv"\ntarget = "y"')
    ids = []
    for place, contents in (("a", "x,y\n1,2\n3,4\n"), ("b", "x,y\n1,2\n3,4\n"), ("c", "x,y\n1,2\n3,5\n")):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "d.csv").write_text(contents)
        study = fb.study.read_study(write(folder, text))
        assert study.points[0]["data"]["path"] == str(folder / "d.csv")
        ids.append(run_id(identity(study.points[0])))
    assert ids[0] == ids[1] != ids[2]


def test_budgets_are_no_part_of_what_a_point_is(tmp_path):
    plain = fb.study.read_study(write(tmp_path, GOOD)).points[0]
    limited = fb.study.read_study(write(tmp_path, GOOD + "[budget]\nseconds = 3.0\n")).points[0]
    assert limited["budget"]["seconds"] == 3.0
    assert run_id(identity(plain)) == run_id(identity(limited))


@pytest.mark.parametrize("name", ["sweep", "demo", "demo-quick"])
def test_the_studies_that_are_shipped_are_in_order(name):
    study = fb.study.read_study(fb.study.template(name))
    assert len(study.points) == {"sweep": 27, "demo": 1, "demo-quick": 1}[name]


def test_every_commented_choice_of_the_template_is_allowed(tmp_path):
    text = fb.study.template("sweep").read_text("utf-8")
    _, _, rest = text.partition("\n\n")
    lines = []
    for row in rest.splitlines():
        bare = row.removeprefix("# ")
        keep = row.startswith("# ") and ("=" in bare or bare.startswith("[runs")) and not bare.startswith("loss")
        lines.append(bare if keep and not bare.startswith(("One", "Every")) else row)
    study = fb.study.read_study(write(tmp_path, "\n".join(lines)))
    assert study.study.diagnostics.certificate
    assert study.study.budget.seconds == 600
    assert "minimum" in study.study.runs


KEYS = st.text("abcdef", min_size=1, max_size=3)
VALUES = st.one_of(st.integers(), st.booleans(), st.lists(st.integers(), max_size=3))


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4), st.randoms())
def test_line_numbers_are_those_of_the_statements(tables, random):
    rows, expected = [], {}
    for table, entries in tables.items():
        rows += ["# a comment"] * random.randrange(3)
        rows.append(f"[{table}]")
        expected[(table,)] = len(rows)
        for key, value in entries.items():
            rows += [""] * random.randrange(2)
            expected[table, key] = len(rows) + 1
            if isinstance(value, list) and random.random() < 0.5:
                rows += [f"{key} = [", *(f"  {entry}," for entry in value), "]"]
            else:
                rows.append(f"{key} = {str(value).lower()}")
    found = line_numbers("\n".join(rows))
    assert {key: line for key, line in found.items() if not isinstance(key[-1], int)} == expected


def test_the_methods_of_flows_are_those_of_integrate():
    assert set(get_args(Method)) == {"auto", *METHODS}


@pytest.mark.parametrize("change", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_marks_and_ends_of_lines_of_other_systems_are_no_fault(tmp_path, change):
    (tmp_path / "study.toml").write_bytes(change(GOOD).encode())
    assert len(fb.study.read_study(tmp_path / "study.toml").points) == 12


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(StudyFileError, match="no file"):
            fb.study.read_study(path)
    with pytest.raises(MissingFileError, match="null byte"):
        fb.study.read_study("a\0b")


def test_lines_of_long_lists_are_found_in_linear_time():
    rows = ["seeds = [", *(f"    {seed}," for seed in range(20_000)), "]", "[network]", "x = 1"]
    assert line_numbers("\n".join(rows))["network", "x"] == 20_004


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('source = "iris"\nsamples = 1000', "150"),
        ('source = "csv"\npath = "d.csv"\ntarget = "nope"', "nope"),
        ('source = "csv"\npath = "empty.csv"\ntarget = "y"', "empty"),
        ('source = "npz"\npath = "d.csv"', "d.csv"),
    ],
)
def test_data_are_read_before_anything_runs(tmp_path, data, said):
    (tmp_path / "d.csv").write_text("x,y\n1,2\n3,4\n")
    (tmp_path / "empty.csv").write_text("")
    path = write(tmp_path, GOOD.replace('source = "iris"\nsamples = 20', data))
    with pytest.raises(StudyFileError, match=said) as caught:
        fb.study.run_study(path, tmp_path / "store")
    assert "study.toml: [data]" in str(caught.value)
    assert not (tmp_path / "store").exists()
