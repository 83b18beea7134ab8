"""The NVML sensor and meter, against a stand-in for ``pynvml`` whose truth is known."""

from types import SimpleNamespace

import pynvml
import pytest

from layer_energy.errors import DeviceLost, InvalidInput, MeterError
from layer_energy.meters import (
    NvmlMeter,
    NvmlSensor,
    ZeusMeter,
    average_power_w,
    check_meter,
    open_meter,
)
from layer_energy.meters import nvml as module
from layer_energy.meters.nvml import AssumedSensor
from layer_energy.meters.simulated import VirtualClock
from layer_energy.meters.virtual_nvml import PowerHistory, VirtualNvml, VirtualSensor

POWER_FIELDS = {185, 186}


@pytest.fixture
def board():
    clock = VirtualClock(100.0)
    return VirtualNvml(clock, PowerHistory(80.0), VirtualSensor(period_s=0.1))


def sensor(board, device=None):
    return NvmlSensor(device, board, board.clock)


class TestSensor:
    def test_one_call_reads_everything(self, board):
        board.history.add(101.0, 10.0, 300.0)
        board.clock.advance(5.0)
        board.power_cap_s, board.thermal_s = 1.5, 0.25
        sample = sensor(board).sample()
        assert sample.power_w == pytest.approx(300.0)
        assert sample.average_power_w == pytest.approx(300.0)
        assert (sample.power_cap_s, sample.thermal_s) == (1.5, 0.25)
        assert sample.start_s < sample.time_s < sample.end_s

    def test_the_counter_counts_the_true_joules(self, board):
        first = sensor(board).sample()
        board.history.add(board.clock(), 10.0, 300.0)
        board.clock.advance(20.0)
        joules = sensor(board).sample().energy_j - first.energy_j
        assert joules == pytest.approx(10 * 300 + 10 * 80, rel=0.01)

    def test_says_what_answers(self, board):
        board.absent = {269, 270}
        answered = sensor(board).answered
        assert "energy counter" in answered
        assert "software thermal slow-down time" not in answered

    def test_is_found_by_uuid_and_not_by_index(self, board):
        assert sensor(board, board.UUID).uuid == board.UUID
        with pytest.raises(MeterError, match="finds no GPU GPU-other"):
            sensor(board, "GPU-other")

    def test_several_gpus_must_be_told_apart(self, board):
        board.nvmlDeviceGetCount = lambda: 2
        with pytest.raises(MeterError, match=r"2 GPUs are visible.*UUID"):
            sensor(board)

    @pytest.mark.parametrize(("instances", "allowed"), [(0, False), (1, True), (2, False)])
    def test_mig_is_refused_unless_sole_tenant(self, board, instances, allowed):
        board.mig_instances = instances
        if allowed:
            assert sensor(board).source == "counter"
        else:
            with pytest.raises(MeterError, match=f"{instances} MIG instances"):
                sensor(board)

    def test_a_32_bit_counter_is_unwrapped(self, board):
        board.sensor.offset_j = (2**32 - 1000) / 1e3
        original = board.nvmlDeviceGetFieldValues

        def narrow(handle, wanted):
            values = original(handle, wanted)
            for value in values:
                value.value.uiVal = value.value.ullVal % 2**32
                value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
            return values

        board.nvmlDeviceGetFieldValues = narrow
        reader = sensor(board)
        first = reader.sample().energy_j
        board.clock.advance(30.0)
        assert reader.sample().energy_j - first == pytest.approx(30 * 80, rel=0.01)

    def test_functions_stand_in_for_missing_fields(self, board):
        # the counter's field is unknown to old drivers, its function is not
        original = board.nvmlDeviceGetFieldValues

        def without(handle, wanted):
            values = original(handle, wanted)
            for value in values:
                if value.fieldId == 83:
                    value.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
            return values

        board.nvmlDeviceGetFieldValues = without
        reader = sensor(board)
        assert reader.source == "counter"
        assert reader.sample().energy_j is not None


class TestLadder:
    @pytest.mark.parametrize(
        ("absent", "source"),
        [(set(), "counter"), ({83}, "instant power"), ({83, 186}, "average power")],
    )
    def test_takes_the_best_that_answers(self, board, absent, source):
        board.absent = absent
        assert sensor(board).source == source

    def test_nothing_at_all_is_an_error_that_says_what_to_do(self, board):
        board.absent = {83, *POWER_FIELDS}
        with pytest.raises(MeterError, match="neither its energy counter nor its power"):
            sensor(board)

    def test_power_usage_is_instant_before_ampere(self, board):
        board.absent = {83, 186}
        board.nvmlDeviceGetFieldValues = _not_supported
        board.nvmlDeviceGetArchitecture = lambda handle: pynvml.NVML_DEVICE_ARCH_TURING
        assert sensor(board).source == "instant power"

    def test_without_a_driver_the_meter_says_so(self):
        with pytest.raises(MeterError, match=r"NVML cannot be used here|not installed"):
            open_meter("nvml")

    def test_assumed_power_is_the_last_rung(self):
        assumed = AssumedSensor(700.0, "hidden")
        assert assumed.power().power_w == pytest.approx(module.LOAD_SHARE * 700.0)
        with pytest.raises(InvalidInput, match="above 0 W"):
            AssumedSensor(0.0, "hidden")


def _not_supported(handle, wanted):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


class TestFaults:
    def test_three_transient_errors_are_retried(self, board):
        reader = sensor(board)
        board.errors.extend([pynvml.NVML_ERROR_TIMEOUT] * 3)
        assert reader.sample().energy_j is not None
        assert not board.errors

    def test_a_fourth_one_is_an_error(self, board):
        reader = sensor(board)
        board.errors.extend([pynvml.NVML_ERROR_TIMEOUT] * 4)
        with pytest.raises(MeterError, match="failed 4 times in a row"):
            reader.sample()

    def test_more_than_five_per_cent_of_a_minute_stops(self, board):
        reader = sensor(board)

        def run(share):
            for i in range(200):
                if i % round(1 / share) == 0:
                    board.errors.append(pynvml.NVML_ERROR_UNKNOWN)
                reader.sample()

        run(0.02)
        with pytest.raises(MeterError, match="of the last minute failed"):
            run(0.25)

    def test_errors_of_long_ago_are_forgotten(self, board):
        reader = sensor(board)
        for _ in range(60):
            reader.sample()
        for _ in range(5):
            for _ in range(2):
                board.errors.append(pynvml.NVML_ERROR_UNKNOWN)
                reader.sample()
            board.clock.advance(61.0)
            for _ in range(60):
                reader.sample()

    def test_an_error_of_one_field_is_retried_like_one_of_the_call(self, board):
        reader = sensor(board)
        original, failures = board.nvmlDeviceGetFieldValues, iter([83, 83])

        def flaky(handle, wanted):
            values = original(handle, wanted)
            bad = next(failures, None)
            for value in values:
                if value.fieldId == bad:
                    value.nvmlReturn = pynvml.NVML_ERROR_UNKNOWN
            return values

        board.nvmlDeviceGetFieldValues = flaky
        assert reader.sample().energy_j is not None
        assert next(failures, "used up") == "used up"

    @pytest.mark.parametrize("code", ["NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED"])
    def test_a_lost_gpu_is_not_retried(self, board, code):
        reader = sensor(board)
        board.errors.append(getattr(pynvml, code))
        with pytest.raises(DeviceLost, match="lost"):
            reader.sample()


class TestMeter:
    def test_keeps_the_contract(self, board):
        check_meter(NvmlMeter(None, board, board.clock))

    def test_measures_a_known_power(self, board):
        meter = NvmlMeter(board.UUID, board, board.clock)
        board.history.add(board.clock(), 100.0, 250.0)
        first = meter.read()
        board.clock.advance(50.0)
        assert average_power_w(first, meter.read()) == pytest.approx(250.0, rel=0.005)
        assert meter.quality == "measured"

    def test_integrates_power_where_nothing_counts(self, board, monkeypatch):
        monkeypatch.setattr(module.threading, "Thread", _NoThread)
        board.absent = {83}
        meter = NvmlMeter(None, board, board.clock)
        first = meter.read()
        for _ in range(20):
            board.clock.advance(0.5)
            last = meter.read()
        assert average_power_w(first, last) == pytest.approx(80.0, rel=0.01)
        assert "sampled" in meter.assumptions[1]

    def test_is_not_taken_for_a_cpus_joules(self):
        assert open_meter("auto").name in ("rapl", "estimated")


class Monitor:
    """A ``ZeusMonitor`` of 100 W."""

    def __init__(self, clock, soc=False):
        self._clock, self._soc = clock, soc

    def begin_window(self, key, sync_execution):
        self._start_s = self._clock()

    def end_window(self, key, sync_execution):
        joules = 100.0 * (self._clock() - self._start_s)
        apple = SimpleNamespace(gpu_mj=600 * joules, cpu_total_mj=400 * joules, dram_mj=None)
        gpus = {} if self._soc else {0: 0.7 * joules, 1: 0.3 * joules}
        return SimpleNamespace(gpu_energy=gpus, soc_energy=apple if self._soc else None)


class TestZeus:
    @pytest.mark.parametrize("soc", [False, True])
    def test_adds_up_the_windows(self, soc):
        clock = VirtualClock()
        meter = ZeusMeter(Monitor(clock, soc), clock)
        first = meter.read()
        for _ in range(3):
            clock.advance(2.0)
            last = meter.read()
        assert last.energy_j - first.energy_j == pytest.approx(600.0)
        check_meter(ZeusMeter(Monitor(clock, soc), clock))

    def test_nothing_to_see_is_an_error(self):
        blind = SimpleNamespace(
            begin_window=lambda *a, **k: None,
            end_window=lambda *a, **k: SimpleNamespace(gpu_energy={}, soc_energy=None),
        )
        with pytest.raises(MeterError, match="neither a GPU nor"):
            ZeusMeter(blind)


class _NoThread:
    def __init__(self, **options):
        pass

    def start(self):
        pass
