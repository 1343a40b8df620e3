"""Checkpoints damaged in every way: never a wrong value, never a loss of what is whole."""

import errno
import resource
import shutil
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowcost.train.checkpoint import Checkpoints, digest

# Reads of tensorstore that fail after the first one has failed complain that their event loop is gone.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(step):
    """Incompressible values of several types, another one for every step."""
    rng = np.random.default_rng(step)
    weights = {"w": rng.standard_normal((64, 50), np.float32), "b": rng.standard_normal(3).astype(jnp.bfloat16)}
    return {"step": np.int32(step), "params": weights, "opt": [weights["w"] ** 2]}


def like(devices=1, spec=None, **changes):
    """Shapes, dtypes and shardings on so many devices."""
    mesh = Mesh(jax.devices()[:devices], ("data",))

    def describe(x):
        sharding = NamedSharding(mesh, spec if spec and x.ndim else PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(describe, state_of(0) | changes)


def save(directory, *steps, keep=2):
    checkpoints = Checkpoints(directory, keep)
    for step in steps:
        checkpoints.save(step, jax.device_put(state_of(step)), {"seconds": step / 3})
    checkpoints.close()


def restore(directory, target=None):
    checkpoints = Checkpoints(directory)
    try:
        return checkpoints.restore_newest(like() if target is None else target)
    finally:
        checkpoints.close()


def assert_is(restored, step):
    """Step, values, types and meta are those saved, bit for bit."""
    got_step, state, meta = restored
    assert got_step == step
    assert meta == {"seconds": step / 3}
    chex.assert_trees_all_equal(jax.device_get(state), state_of(step))
    chex.assert_trees_all_equal_dtypes(state, state_of(step))


def files(directory):
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def contents(directory):
    return {path: (directory / path).read_bytes() for path in files(directory)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 3 and 7."""
    directory = tmp_path_factory.mktemp("saved")
    save(directory, 3, 7)
    return directory


def flip(where):
    def flipped(path):
        content = bytearray(path.read_bytes())
        content[int(where * (len(content) - 1))] ^= 1 << 3
        path.write_bytes(content)

    return flipped


def truncate(share):
    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(flip(where), id=f"bit flipped at {where:.0%}") for where in (0.3, 0.5, 0.7, 0.9)),
        *(pytest.param(truncate(share), id=f"truncated at {share:.0%}") for share in (0, 0.5, 0.99)),
        pytest.param(lambda path: path.unlink(), id="deleted"),
    ],
)
def test_every_file_damaged(saved, tmp_path, capfd, damage):
    """The values of the newest step, bit for bit, where the damage touches none of them; otherwise the step before."""
    steps, reasons = Counter(), ""
    for number, file in enumerate(files(saved / "7")):
        directory = tmp_path / str(number)
        shutil.copytree(saved, directory)
        damage(directory / "7" / file)
        broken = contents(directory / "7")
        restored = restore(directory)
        warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert_is(restored, restored[0])
        steps[restored[0]] += 1
        if restored[0] == 7:
            # Some bytes hold nothing; these always do.
            assert file.as_posix() not in ("meta/metadata", "state/manifest.ocdbt")
            assert warnings == []
        else:
            assert contents(directory / "damaged-7-1") == broken
            assert len(warnings) == 1
            assert f"{directory / '7'} is damaged (" in warnings[0]
            assert "set aside as damaged-7-1, going on from step 3" in warnings[0]
            reasons += warnings[0]
    assert set(steps) == {3, 7}
    assert steps[3] >= 4
    if damage.__name__ == "flipped":  # in a weight, which nothing else notices
        assert "] does not match its sha256" in reasons


def test_no_value_of_the_record_is_believed_unverified(saved, tmp_path):
    """One flipped bit here and there all through the JSON item: shapes and meta are as safe as the weights."""
    size = (saved / "7" / "meta" / "metadata").stat().st_size
    for position in range(0, size, 29):
        directory = tmp_path / str(position)
        shutil.copytree(saved, directory)
        flip(position / (size - 1))(directory / "7" / "meta" / "metadata")
        assert_is(restore(directory), 3)


def test_all_damaged(saved, tmp_path, capsys):
    """One line, and everything is still there; then there is no checkpoint."""
    shutil.copytree(saved, tmp_path / "run")
    for step in "3", "7":
        flip(0.5)(tmp_path / "run" / step / "meta" / "metadata")
    broken = [contents(tmp_path / "run" / step) for step in ("3", "7")]
    with pytest.raises(ValueError, match=r"all checkpoints in .*/run are damaged, .* damaged-\*: 2; put back") as error:
        restore(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert [contents(tmp_path / "run" / f"damaged-{step}-1") for step in (3, 7)] == broken
    assert restore(tmp_path / "run") is None


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "too many open files")], ids=repr)
def test_what_the_machine_lacks_is_no_damage(saved, tmp_path, monkeypatch, error):
    shutil.copytree(saved, tmp_path / "run")
    before = contents(tmp_path / "run")

    def fails(self, step, args):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("orbax.checkpoint.CheckpointManager.restore", fails)
        with pytest.raises(type(error)):
            restore(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    assert_is(restore(tmp_path / "run"), 7)


def test_who_does_not_own_the_run_mends_nothing(saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path / "run")
    flip(0.5)(tmp_path / "run" / "7" / "meta" / "metadata")
    before = contents(tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run", owned=False)
    assert_is(checkpoints.restore_newest(like()), 3)
    checkpoints.close()
    assert contents(tmp_path / "run") == before
    assert "is damaged (" in capsys.readouterr().err


def test_a_reader_goes_on_to_what_the_run_has_kept_meanwhile(tmp_path, saved, monkeypatch):
    """The run may let go of a checkpoint between its name being read and its content."""
    shutil.copytree(saved, tmp_path / "run")
    read = Checkpoints._read

    def reads_late(self, path, **items):
        if path.name == "7" and path.exists():
            shutil.rmtree(path)
        return read(self, path, **items)

    monkeypatch.setattr(Checkpoints, "_read", reads_late)
    checkpoints = Checkpoints(tmp_path / "run", owned=False)
    assert_is(checkpoints.restore_newest(like()), 3)
    checkpoints.close()


def test_what_a_kill_left_behind_is_cleared_by_the_owner(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    for owned in False, True:
        checkpoints = Checkpoints(tmp_path / "run", owned=owned)
        assert_is(checkpoints.restore_newest(like()), 7)
        checkpoints.close()
        assert (tmp_path / "run" / "9.orbax-checkpoint-tmp").exists() != owned


def test_digest_is_of_the_values():
    """Wherever they lie, and of nothing else."""
    spread = jax.device_put(state_of(1), jax.tree.map(lambda x: x.sharding, like(4)))
    assert digest(spread) == digest(jax.device_put(state_of(1))) != digest(jax.device_put(state_of(2)))


def test_no_checkpoint(tmp_path):
    assert restore(tmp_path) is None


def test_damaged_twice(tmp_path, capsys):
    """The run goes on from the older step to the same number, which is damaged again: both are kept."""
    for attempt in 1, 2, 3:
        save(tmp_path, *((3, 7) if attempt == 1 else (7,)))
        (tmp_path / "7" / "meta" / "metadata").write_text(str(attempt))
        assert_is(restore(tmp_path), 3)
        assert f"set aside as damaged-7-{attempt}," in capsys.readouterr().err
    kept = [(tmp_path / f"damaged-7-{attempt}" / "meta" / "metadata").read_text() for attempt in (1, 2, 3)]
    assert kept == ["1", "2", "3"]


def test_after_a_fall_back_the_same_object_saves_again(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    truncate(0)(tmp_path / "run" / "7" / "meta" / "metadata")
    checkpoints = Checkpoints(tmp_path / "run")
    assert_is(checkpoints.restore_newest(like()), 3)
    checkpoints.save(7, jax.device_put(state_of(7)), {"seconds": 7 / 3})
    checkpoints.close()
    assert_is(restore(tmp_path / "run"), 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opt": [np.zeros(9)]}, r"\['opt'\]\[0\] is float32\[64, 50\] there and float64\[9\] here"),
        ({"step": np.int16(0)}, r"\['step'\] is int32\[\] there and int16\[\] here"),
        ({"opt": []}, r"\['opt'\]\[0\] is float32\[64, 50\] there and missing here"),
        ({"ema": np.zeros(2)}, r"\['ema'\] is missing there and float64\[2\] here"),
    ],
)
@pytest.mark.parametrize("newest_damaged", [False, True])
def test_another_network_is_refused_and_nothing_touched(saved, tmp_path, changes, message, newest_damaged):
    shutil.copytree(saved, tmp_path / "run")
    if newest_damaged:
        truncate(0)(tmp_path / "run" / "7" / "meta" / "metadata")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"/run/\d holds another network: {message}; choose"):
        restore(tmp_path / "run", like(**changes))
    assert contents(tmp_path / "run") == before


def test_four_devices_then_one_then_two(tmp_path):
    """Exact, each on the devices that it asked for, split there if so asked."""
    state = jax.device_put(state_of(1), jax.tree.map(lambda x: x.sharding, like(4)))
    for step, target in enumerate([like(), like(2), like(4, PartitionSpec("data"))], 1):
        if step == 3:
            del target["params"]["b"], state["params"]["b"]  # three numbers cannot be split
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(step, state, {})
        _, restored, _ = checkpoints.restore_newest(target)
        checkpoints.close()
        chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
        jax.tree.map(lambda x, y: chex.assert_equal(x.sharding, y.sharding), restored, target)
        state = restored


def test_what_is_saved_may_be_donated(tmp_path):
    """The copy that is being written is not the buffer that the next step overwrites."""
    checkpoints, state = Checkpoints(tmp_path), jax.device_put(state_of(5))
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints.save(5, state, {"seconds": 5 / 3})
    for _ in range(20):
        state = step(state)
    checkpoints.close()
    assert_is(restore(tmp_path), 5)


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_are_kept(tmp_path, keep):
    save(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(step) for step in range(6 - keep, 6)]


def test_a_full_disk(saved, tmp_path):
    """The save that found no room is an OSError of one line; what was there is whole, and the next save works."""
    shutil.copytree(saved, tmp_path / "run")
    before = contents(tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        checkpoints.save(9, jax.device_put(state_of(9)), {"seconds": 3.0})
        with pytest.raises(OSError, match=r"no checkpoint could be written to .*/run \(.*\); the older ones") as error:
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    after = contents(tmp_path / "run")
    assert {path: after[path] for path in before} == before
    assert_is(restore(tmp_path / "run"), 7)
    save(tmp_path / "run", 9)
    assert_is(restore(tmp_path / "run"), 9)
