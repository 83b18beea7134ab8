"""Meters against closed forms, a fake powercap tree and a clock that only moves when told."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer_energy.errors import InvalidInput, MeterError
from layer_energy.meters import (
    EstimatedMeter,
    Meter,
    RaplMeter,
    Reading,
    ReplayMeter,
    SimulatedMeter,
    VirtualClock,
    average_power_w,
    base,
    check_meter,
    meters,
    open_meter,
    register,
)

RANGE_UJ = 262_143_328_850


def add_zone(
    root: Path, folder: str, name: str, energy_uj: int = 0, range_uj: int = RANGE_UJ
) -> Path:
    """Make one powercap zone; return the file of its counter."""
    zone = root / folder
    zone.mkdir(parents=True)
    (zone / "name").write_text(name + "\n")
    (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    return zone / "energy_uj"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo registrations after the test."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


class TestAveragePower:
    def test_is_energy_over_time(self) -> None:
        assert average_power_w(Reading(10.0, 5.0), Reading(12.0, 105.0)) == 50.0

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            (Reading(1.0, 2.0), "no time"),
            (Reading(0.5, 2.0), "no time"),
            (Reading(math.nan, 2.0), "no time"),
            (Reading(2.0, 0.5), "energy goes backwards"),
            (Reading(2.0, math.nan), "energy goes backwards"),
        ],
    )
    def test_refuses_what_has_no_power(self, second: Reading, message: str) -> None:
        with pytest.raises(MeterError, match=message):
            average_power_w(Reading(1.0, 1.0), second)


class TestEstimated:
    def test_power_is_idle_plus_the_rest_times_utilisation(self) -> None:
        wall, cpu = VirtualClock(7.0), VirtualClock(3.0)
        meter = EstimatedMeter(20.0, 100.0, threads=8, clock=wall, cpu_clock=cpu)
        start = meter.read()
        wall.advance(10.0)
        idle = meter.read()
        wall.advance(10.0)
        cpu.advance(80.0)
        busy = meter.read()
        wall.advance(10.0)
        cpu.advance(20.0)
        quarter = meter.read()
        assert average_power_w(start, idle) == pytest.approx(20.0)
        assert average_power_w(idle, busy) == pytest.approx(100.0)
        assert average_power_w(busy, quarter) == pytest.approx(40.0)

    def test_defaults_are_3_5_and_0_7_watts_per_thread_and_said_so(self) -> None:
        wall, cpu = VirtualClock(), VirtualClock()
        meter = EstimatedMeter(threads=4, clock=wall, cpu_clock=cpu)
        wall.advance(1.0)
        assert meter.read().energy_j == pytest.approx(2.8)
        cpu.advance(4.0)
        assert meter.read().energy_j == pytest.approx(14.0)
        assert "3.5 W per hardware thread" in " ".join(meter.assumptions)
        assert "±50%" in " ".join(meter.assumptions)

    def test_given_powers_are_not_called_assumed(self) -> None:
        assert len(EstimatedMeter(10.0, 65.0, threads=16).assumptions) == 1

    def test_idle_follows_a_given_maximum(self) -> None:
        wall = VirtualClock()
        meter = EstimatedMeter(max_power_w=65.0, threads=64, clock=wall, cpu_clock=VirtualClock())
        wall.advance(2.0)
        assert meter.read().energy_j == pytest.approx(0.2 * 65.0 * 2.0)

    @pytest.mark.parametrize(
        "options",
        [
            {"idle_power_w": 50.0, "max_power_w": 40.0},
            {"idle_power_w": -1.0},
            {"max_power_w": -1.0},
            {"max_power_w": math.nan},
            {"max_power_w": math.inf},
            {"idle_power_w": math.nan},
            {"threads": 0},
        ],
    )
    def test_refuses_impossible_powers(self, options: dict[str, float]) -> None:
        with pytest.raises(InvalidInput):
            open_meter("estimated", **options)


class TestRapl:
    def test_sums_packages_and_dram_and_nothing_else(self, tmp_path: Path) -> None:
        counted = {
            add_zone(tmp_path, "intel-rapl:0", "package-0", 1000): 1_000_000,
            add_zone(tmp_path, "intel-rapl:0:2", "dram", 50): 200_000,
            add_zone(tmp_path, "intel-rapl:1", "package-1", 9): 3_000_000,
        }
        ignored = [
            add_zone(tmp_path, "intel-rapl:0:0", "core"),
            add_zone(tmp_path, "intel-rapl:0:1", "uncore"),
            add_zone(tmp_path, "intel-rapl:2", "psys"),
            add_zone(tmp_path, "intel-rapl-mmio:0", "package-0"),
        ]
        clock = VirtualClock()
        meter = RaplMeter(tmp_path, clock)
        assert meter.read() == Reading(0.0, 0.0)
        for file, step_uj in counted.items():
            file.write_text(str(int(file.read_text()) + step_uj))
        for file in ignored:
            file.write_text("777000000")
        clock.advance(2.0)
        assert meter.read() == Reading(2.0, 4.2)
        assert "other processes" in meter.assumptions[0]
        assert meter.quality == "measured"

    def test_unwraps_each_counter_by_its_own_range(self, tmp_path: Path) -> None:
        package = add_zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
        dram = add_zone(tmp_path, "intel-rapl:0:0", "dram", 900_000, range_uj=1_000_000)
        meter = RaplMeter(tmp_path)
        package.write_text("500000")
        dram.write_text("100000")
        assert meter.read().energy_j == pytest.approx(1.5 + 0.2)
        package.write_text("600000")
        assert meter.read().energy_j == pytest.approx(1.6 + 0.2)

    @given(
        range_uj=st.integers(2, RANGE_UJ),
        start=st.floats(0, 1, exclude_max=True),
        steps=st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
    )
    def test_unwrapping_is_exact_below_one_range_a_step(
        self, range_uj: int, start: float, steps: list[float]
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            true_uj = origin_uj = int(start * range_uj)
            counter = add_zone(Path(folder), "intel-rapl:0", "package-0", true_uj, range_uj)
            meter = RaplMeter(folder)
            for step in steps:
                true_uj += int(step * range_uj)
                counter.write_text(str(true_uj % range_uj))
                assert meter.read().energy_j == (true_uj - origin_uj) / 1e6

    def test_missing_tree_is_a_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(MeterError, match="no usable RAPL package counter"):
            RaplMeter(tmp_path / "absent")

    def test_unreadable_counter_says_how_to_read_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_zone(tmp_path, "intel-rapl:0", "package-0")
        read_text = Path.read_text

        def as_user(path: Path) -> str:  # tests may run as root, whom no mode bits stop
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(path))
            return read_text(path)

        monkeypatch.setattr(Path, "read_text", as_user)
        with pytest.raises(MeterError, match=r"energy_uj .* run as root.* chmod .* setcap"):
            RaplMeter(tmp_path)

    @pytest.mark.parametrize("range_uj", ["0", "", "nonsense", None])
    def test_zone_without_a_range_is_left_out_and_named(
        self, tmp_path: Path, range_uj: str | None
    ) -> None:
        package = add_zone(tmp_path, "intel-rapl:0", "package-0")
        dram = add_zone(tmp_path, "intel-rapl:0:0", "dram")
        file = dram.with_name("max_energy_range_uj")
        file.unlink() if range_uj is None else file.write_text(range_uj)
        meter = RaplMeter(tmp_path)
        package.write_text("1000000")
        dram.write_text("5000000")
        assert meter.read().energy_j == 1.0
        assert any("left out" in text and "dram" in text for text in meter.assumptions)

    def test_dram_alone_is_not_a_processor(self, tmp_path: Path) -> None:
        add_zone(tmp_path, "intel-rapl:0", "package-0", range_uj=0)
        add_zone(tmp_path, "intel-rapl:0:0", "dram")
        with pytest.raises(MeterError, match="package-0"):
            RaplMeter(tmp_path)

    def test_counter_that_vanishes_is_a_meter_error(self, tmp_path: Path) -> None:
        counter = add_zone(tmp_path, "intel-rapl:0", "package-0")
        meter = RaplMeter(tmp_path)
        counter.unlink()
        with pytest.raises(MeterError, match="no longer"):
            meter.read()


class TestSimulated:
    def test_constant_power_with_gain(self) -> None:
        clock = VirtualClock(100.0)
        meter = SimulatedMeter(200.0, clock, gain=0.95)
        clock.sleep(3.0)
        assert meter.read() == Reading(103.0, 0.95 * 600.0)

    @pytest.mark.parametrize("reads", [1, 7])
    def test_integrates_a_function_of_time(self, reads: int) -> None:
        clock = VirtualClock()
        meter = SimulatedMeter(lambda time_s: 100.0 + 50.0 * math.sin(time_s), clock)
        for _ in range(reads):
            clock.advance(2.0 / reads)
            reading = meter.read()
        assert reading.energy_j == pytest.approx(200.0 + 50.0 * (1 - math.cos(2.0)), rel=1e-6)

    def test_integrates_a_step_to_a_millisecond(self) -> None:
        clock = VirtualClock()
        meter = SimulatedMeter(lambda time_s: 300.0 if time_s > 0.5 else 100.0, clock)
        clock.advance(1.0)
        assert meter.read().energy_j == pytest.approx(200.0, abs=0.2)

    def test_holds_the_last_update_between_updates(self) -> None:
        clock = VirtualClock()
        meter = SimulatedMeter(10.0, clock, period_s=0.1)
        energies = []
        for _ in range(6):
            clock.advance(0.05)
            energies.append(meter.read().energy_j)
        assert energies == pytest.approx([0.0, 1.0, 1.0, 2.0, 2.0, 3.0])
        assert meter.read().time_s == pytest.approx(0.3)

    @pytest.mark.parametrize(
        "options",
        [
            {"power_w": -1.0},
            {"power_w": math.nan},
            {"power_w": 1.0, "period_s": -0.1},
            {"power_w": 1.0, "gain": 0.0},
        ],
    )
    def test_refuses_the_impossible(self, options: dict[str, float]) -> None:
        with pytest.raises(InvalidInput):
            open_meter("simulated", **options)

    @pytest.mark.parametrize("duration_s", [-1.0, math.nan])
    def test_clock_does_not_go_back(self, duration_s: float) -> None:
        with pytest.raises(InvalidInput):
            VirtualClock().advance(duration_s)


class TestReplay:
    def test_returns_each_reading_once_then_ends(self) -> None:
        readings = [Reading(0.0, 1.0), Reading(1.0, 3.0)]
        meter = ReplayMeter(iter(readings))
        assert [meter.read(), meter.read()] == readings
        with pytest.raises(MeterError, match="ends after 2"):
            meter.read()

    def test_reads_energy_from_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "log.csv"
        path.write_text("\ufefftime_s,power_w,energy_j\n1,nan,5\n2,7,9.5\n", encoding="utf-8")
        meter = ReplayMeter.from_csv(path)
        assert [meter.read(), meter.read()] == [Reading(1.0, 5.0), Reading(2.0, 9.5)]

    def test_integrates_power_from_csv_by_trapezoids(self, tmp_path: Path) -> None:
        path = tmp_path / "log.csv"
        path.write_text("time_s,power_w\n10,100\n12,200\n12,50\n13,50\n")
        meter = ReplayMeter.from_csv(path)
        assert [meter.read().energy_j for _ in range(4)] == [0.0, 300.0, 300.0, 350.0]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("time_s,energy_j\n0,0\n2,1\n1,2\n", "line 4: time goes backwards"),
            ("time_s,energy_j\n0,5\n2,1\n", "line 3: energy goes backwards"),
            ("time_s,energy_j\n0,nan\n", "line 2: .*finite"),
            ("time_s,energy_j\nnan,0\n", "line 2: .*finite"),
            ("time_s,power_w\n0,nan\n1,5\n", "line 2: .*finite"),
            ("time_s,power_w\n0,-5\n1,50\n", "line 2: power_w"),
            ("time_s,power_w\n0,1\n1,inf\n", "line 3: .*finite"),
            ("time_s,energy_j\n0,0\n1,many\n", "line 3: .*numbers"),
            ("time_s,energy_j\n0,0\n1\n", "line 3: .*numbers"),
            ("time_s,joules\n0,0\n", "needs the columns"),
            ("", "needs the columns"),
            ("time_s,energy_j\n", "no rows"),
        ],
    )
    def test_bad_files_name_the_line(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "log.csv"
        path.write_text(text)
        with pytest.raises(InvalidInput, match=message):
            ReplayMeter.from_csv(path)

    def test_files_that_are_no_text_or_absent(self, tmp_path: Path) -> None:
        path = tmp_path / "log.csv"
        path.write_bytes(b"time_s,energy_j\n\xff,1\n")
        with pytest.raises(InvalidInput, match="not a text table"):
            ReplayMeter.from_csv(path)
        with pytest.raises(MeterError, match="cannot be opened"):
            ReplayMeter.from_csv(tmp_path / "absent.csv")

    def test_bad_readings_are_numbered(self) -> None:
        with pytest.raises(InvalidInput, match="reading 2: time goes backwards"):
            ReplayMeter([Reading(1.0, 0.0), Reading(0.0, 0.0)])
        with pytest.raises(InvalidInput, match="one reading at least"):
            ReplayMeter([])


@pytest.mark.usefixtures("registry")
class TestOpening:
    def test_auto_takes_rapl_where_it_can_be_read(self, tmp_path: Path) -> None:
        add_zone(tmp_path, "intel-rapl:0", "package-0")
        assert open_meter(root=tmp_path, max_power_w=65.0).name == "rapl"

    def test_auto_falls_back_to_the_estimate_with_its_options(self, tmp_path: Path) -> None:
        meter = open_meter(root=tmp_path, max_power_w=65.0, idle_power_w=15.0)
        assert meter.name == "estimated"
        assert "15 W + 50 W" in meter.assumptions[0]

    def test_a_new_meter_joins_the_ladder_by_its_rank(self, tmp_path: Path) -> None:
        @register("best", rank=0)
        def best() -> SimulatedMeter:
            return SimulatedMeter(1.0)

        assert open_meter(root=tmp_path).name == "simulated"

        @register("best", rank=0)
        def absent() -> SimulatedMeter:
            raise MeterError("not here")

        assert open_meter(root=tmp_path).name == "estimated"

    def test_all_failures_are_told_when_none_works(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(base._REGISTRY, "estimated")
        with pytest.raises(MeterError, match="rapl: no usable RAPL"):
            open_meter(root=tmp_path)

    def test_wrong_name_lists_the_valid_ones(self) -> None:
        with pytest.raises(InvalidInput, match="auto, estimated, nvml, rapl, replay, sim"):
            open_meter("raple")

    def test_wrong_options_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="max_powr_w"):
            open_meter("estimated", max_powr_w=65.0)
        with pytest.raises(InvalidInput, match="max_powr_w"):
            open_meter(max_powr_w=65.0)
        with pytest.raises(InvalidInput, match="power_w"):
            open_meter("simulated")

    def test_entry_points_register(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "strangers_meter.py").write_text(
            "from layer_energy.meters import SimulatedMeter, register\n"
            "@register('strangers')\n"
            "def make():\n"
            "    return SimulatedMeter(3.0)\n"
        )
        info = tmp_path / "strangers-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[layer_energy.meters]\ns = strangers_meter\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert "strangers" in meters()
        check_meter(open_meter("strangers"))


class TestContract:
    def test_all_meters_keep_it(self, tmp_path: Path) -> None:
        add_zone(tmp_path, "intel-rapl:0", "package-0")
        for meter in (
            EstimatedMeter(),
            RaplMeter(tmp_path),
            SimulatedMeter(100.0),
            SimulatedMeter(lambda time_s: time_s, VirtualClock(), period_s=0.1),
            ReplayMeter(Reading(float(n), float(n)) for n in range(20)),
        ):
            assert isinstance(meter, Meter)
            check_meter(meter)

    @pytest.mark.parametrize(
        ("attribute", "value", "message"),
        [
            ("name", "", "name"),
            ("quality", "guessed", "quality 'guessed'"),
            ("relative_uncertainty", 5.0, "from 0 to 1"),
            ("relative_uncertainty", math.nan, "from 0 to 1"),
            ("relative_uncertainty", "small", "from 0 to 1"),
            ("period_s", -0.1, "period_s"),
            ("assumptions", "one sentence", "tuple of strings"),
            ("assumptions", (1,), "tuple of strings"),
            ("read", 3, "cannot be called"),
            ("read", lambda: (0.0, 0.0), "no Reading"),
            ("read", lambda: Reading(0.0, math.nan), "finite"),
            ("read", iter(Reading(-n, 0.0) for n in range(20)).__next__, "backwards in time"),
            ("read", iter(Reading(n, -n) for n in range(20)).__next__, "backwards in energy"),
        ],
    )
    def test_broken_meters_break_it(self, attribute: str, value: object, message: str) -> None:
        meter = SimulatedMeter(100.0)
        setattr(meter, attribute, value)
        with pytest.raises(AssertionError, match=message):
            check_meter(meter)

    def test_missing_attribute_breaks_it(self) -> None:
        class Half:
            name = "half"
            read: Callable[[], Reading] = EstimatedMeter().read

        assert not isinstance(Half(), Meter)
        with pytest.raises(AssertionError, match=r"'half'.* no attribute 'quality'"):
            check_meter(Half())  # type: ignore[arg-type]


def test_importing_meters_imports_nothing_heavy() -> None:
    code = (
        "import sys, layer_energy.meters;"
        "print(*{'torch', 'numpy', 'layer_energy.layers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
