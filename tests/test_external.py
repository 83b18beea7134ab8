"""Readers of other people's data: mapping, products of columns, and errors that name the place."""

from pathlib import Path

import pytest

from layer_energy.errors import DatasetError, InvalidInput
from layer_energy.external import ColumnMapping, read_csv

RELU = ColumnMapping("relu", {"elements": ("batch_size", "in_elems"), "in_place": 0})
SHARED = Path(__file__).parents[2] / "shared" / "external" / "getzner2023"


def write(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    return path


def test_rows_become_measurements(tmp_path):
    path = write(tmp_path, "batch_size,in_elems,duration_s,energy_j\n4,25.0,0.5,10\n2,3,0.1,1\n")
    first, second = read_csv(path, RELU)
    assert first.workload.params == {"elements": 100, "in_place": 0}
    assert (first.time_s, first.energy_j, first.power_w) == (0.5, 10.0, 20.0)
    assert (second.row_id, second.workload.params["elements"]) == (1, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size,duration_s,energy_j\n1,1,1\n", "no column 'in_elems'"),
        ("batch_size,in_elems,duration_s,energy_j\n1,x,1,1\n", "line 2: in_elems is 'x'"),
        ("batch_size,in_elems,duration_s,energy_j\n1,nan,1,1\n", "not a finite number"),
        ("batch_size,in_elems,duration_s,energy_j\n1,1.5,1,1\n", "whole number"),
        ("batch_size,in_elems,duration_s,energy_j\n1,1,1,1\n1,1,1,-1\n", "line 3: time and energy"),
        ("batch_size,in_elems,duration_s,energy_j\n1,1,1\n", "energy_j is None"),
    ],
)
def test_bad_files_name_line_and_column(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        read_csv(write(tmp_path, text), RELU)


def test_a_missing_file_and_an_incomplete_mapping(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        read_csv(tmp_path / "none.csv", RELU)
    with pytest.raises(InvalidInput, match=r"lacks \['in_place'\]"):
        ColumnMapping("relu", {"elements": "n"})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the reference data are not beside this checkout")
def test_the_tidy_copy_of_the_papers_data():
    rows = read_csv(SHARED / "random_relu.csv", RELU)
    assert len(rows) == 988
    assert 60 < sorted(r.power_w for r in rows)[494] < 90
