"""Damaged checkpoints never give a wrong value, and intact ones are never lost."""

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowcost.train.checkpoint import Checkpoints, digest


def state_of(step):
    """Returns incompressible values of several types, which differ between steps."""
    rng = np.random.default_rng(step)
    weights = {"w": rng.standard_normal((64, 50), np.float32), "b": rng.standard_normal(3).astype(jnp.bfloat16)}
    return {"step": np.int32(step), "params": weights, "opt": [weights["w"] ** 2]}


def like(devices=1, spec=None, **changes):
    """Returns shapes, dtypes and shardings on the given number of devices."""
    mesh = Mesh(jax.devices()[:devices], ("data",))

    def describe(x):
        sharding = NamedSharding(mesh, spec if spec and x.ndim else PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(describe, state_of(0) | changes)


def save(directory, *steps, keep=2, run=None):
    checkpoints = Checkpoints(directory, keep=keep, run=run)
    for step in steps:
        checkpoints.save(step, jax.device_put(state_of(step)), {"seconds": step / 3})
    checkpoints.close()


def test_the_newest_checkpoint_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)


def restore(directory, target=None, **options):
    checkpoints = Checkpoints(directory, **options)
    try:
        return checkpoints.restore_newest(like() if target is None else target)
    finally:
        checkpoints.close()


def assert_is(restored, step):
    """Asserts that step, values, types and meta are those saved, bit for bit."""
    got_step, state, meta, whole = restored
    assert got_step == step
    assert meta == {"seconds": step / 3}
    assert whole == digest(jax.device_put(state_of(step)))
    chex.assert_trees_all_equal(jax.device_get(state), state_of(step))
    chex.assert_trees_all_equal_dtypes(state, state_of(step))


def files(directory):
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def contents(directory):
    return {path: (directory / path).read_bytes() for path in files(directory)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a directory with checkpoints of steps 3 and 7."""
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
    """Each damaged file is noticed and named, and the step before is restored; nothing is deleted."""
    found, reason = 0, "is missing" if damage.__name__ == "<lambda>" else "does not match its sha256"
    for number, file in enumerate(files(saved / "7")):
        directory = tmp_path / str(number)
        shutil.copytree(saved, directory)
        damage(directory / "7" / file)
        broken = contents(directory / "7")
        restored = restore(directory)
        warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert_is(restored, restored[0])
        if contents(saved / "7") == broken:  # cutting an empty file changes nothing
            assert restored[0] == 7
            continue
        assert contents(directory / "damaged-7-1") == broken
        assert warnings == [
            f"warning: {directory / '7'} is damaged ({file.as_posix()} {reason}); set aside as damaged-7-1, "
            "using step 3"
        ]
        found += 1
    assert found >= 10


def test_no_value_of_the_record_is_believed_unverified(saved, tmp_path):
    """Single bits flipped throughout the manifest are noticed: shapes and meta are as safe as the weights."""
    size = (saved / "7" / "manifest").stat().st_size
    for position in range(0, size, 29):
        directory = tmp_path / str(position)
        shutil.copytree(saved, directory)
        flip(position / (size - 1))(directory / "7" / "manifest")
        assert_is(restore(directory), 3)


def test_all_damaged(saved, tmp_path, capsys):
    """The error is one line and all files are set aside; a second attempt gives the same error."""
    shutil.copytree(saved, tmp_path / "run")
    for step in "3", "7":
        flip(0.5)(tmp_path / "run" / step / "manifest")
    broken = [contents(tmp_path / "run" / step) for step in ("3", "7")]
    with pytest.raises(
        ValueError, match=r"/run must hold a valid checkpoint, got damaged ones only; put back"
    ) as error:
        restore(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert [contents(tmp_path / "run" / f"damaged-{step}-1") for step in (3, 7)] == broken
    with pytest.raises(ValueError, match="valid checkpoint, got damaged ones only; put back"):
        restore(tmp_path / "run")


@pytest.mark.parametrize("name", ["exp[1]", "a*b?", "{x}#%20", "ü λ", "two\nlines", "'\"", "~", "x" * 200])
def test_any_name_of_a_directory(tmp_path, name):
    """A checkpoint is restored under any name, whatever its characters mean to the libraries below."""
    save(tmp_path / name / "checkpoints", 3)
    assert_is(restore(tmp_path / name / "checkpoints"), 3)


@pytest.mark.parametrize("name", ["back\\slash", "gs:", os.fsdecode(b"raw\xff")])
def test_a_name_that_orbax_cannot_read_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError, match=r"directory must be UTF-8 without \\ or ':/', got .*; choose"):
        Checkpoints(tmp_path / name / "checkpoints")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_reads_back_otherwise_is_an_error(saved, tmp_path, monkeypatch):
    """Every save is read back; one that fails leaves the older checkpoints and no new one."""
    shutil.copytree(saved, tmp_path / "run")
    write = ocp.PyTreeCheckpointHandler.save

    def forgets(self, directory, args):
        write(self, directory, args)
        shutil.rmtree(directory / "params.b")

    def reads_otherwise(self, *arguments, **options):
        return jax.tree.map(lambda x: x + 1, read(self, *arguments, **options))

    read = ocp.PyTreeCheckpointHandler.restore
    for name, wrong, message in (("save", forgets, ""), ("restore", reads_otherwise, r"must give .* as saved, got ")):
        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, name, wrong)
        with pytest.raises(OSError, match=rf"no checkpoint could be written to .*{message}.*; older checkpoints"):
            save(tmp_path / "run", 9)
        monkeypatch.undo()
    assert_is(restore(tmp_path / "run"), 7)


MACHINE = """
import os, resource, shutil, sys
from pathlib import Path
import jax
from test_checkpoint import Checkpoints, like, save
directory, kind = Path(sys.argv[1]), sys.argv[2]
save(directory, 3, 7)
target = like()
data = next((directory / "7" / "state" / "params.w").glob("0*"))
os.chmod(data, 0 if kind == "permission" else 0o644)
if os.geteuid() == 0:  # root may read everything
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
if kind == "threads":
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    Checkpoints(directory).restore_newest(target)
except OSError as error:
    print("refused:", str(error).splitlines()[0])
print(sorted(os.listdir(directory)))
os.chmod(data, 0o644)
"""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("permission", "Permission denied"),
        ("threads", "is intact but cannot be read here (can't start new thread); try again"),
    ],
)
def test_what_the_machine_lacks_is_no_damage(kind, message):
    """An unreadable file or a lack of threads renames nothing, in a process of an ordinary user."""
    with tempfile.TemporaryDirectory() as directory:  # everybody may enter its parents
        os.chmod(directory, 0o755)
        run = Path(directory) / "run"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        command = [sys.executable, "-c", MACHINE, str(run), kind]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        refused, there = done.stdout.splitlines()
        assert refused.startswith("refused: ")
        assert message in refused
        assert there == "['3', '7']"
        assert_is(restore(run), 7)


WRITER = """
import sys
from pathlib import Path
import jax
from test_checkpoint import Checkpoints, state_of
checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
for step in range(1, 10**6):
    checkpoints.save(step, jax.device_put(state_of(step)), {"seconds": step / 3})
"""


def test_a_reader_beside_a_writer_that_keeps_one(tmp_path):
    """Every read finds a valid checkpoint, although the writer removes the one before at any moment."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "run")], env=environment)
    try:
        while not list((tmp_path / "run").glob("[0-9]*")):
            assert writer.poll() is None
            time.sleep(0.05)
        steps, begin = set(), time.monotonic()
        while len(steps) <= 10:  # so that the writer is active all the time
            restored = restore(tmp_path / "run", owned=False)
            assert_is(restored, restored.step)
            steps.add(restored.step)
            assert time.monotonic() - begin < 60
    finally:
        writer.kill()
        writer.wait()


def test_a_checkpoint_knows_whose_it_is(tmp_path):
    """A checkpoint that is renamed or copied from another run is refused by name, and nothing is changed."""
    mine, other = {"seed": 0, "configuration": "ab"}, {"seed": 1, "configuration": "cd"}
    save(tmp_path / "mine", 20, run=mine)
    save(tmp_path / "other", 30, run=other)
    shutil.copytree(tmp_path / "other" / "30", tmp_path / "mine" / "30")
    with pytest.raises(
        ValueError, match=r"/mine/30 must be a checkpoint of seed 0, got seed 1; put back the run's own"
    ):
        restore(tmp_path / "mine", run=mine)
    shutil.rmtree(tmp_path / "mine" / "30")
    (tmp_path / "mine" / "20").rename(tmp_path / "mine" / "30")
    with pytest.raises(ValueError, match=r"/mine/30 must be a checkpoint of step 30, got step 20;"):
        restore(tmp_path / "mine", run=mine)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["30"]


def test_another_state_of_a_step_that_is_there_is_an_error(tmp_path):
    save(tmp_path, 7)
    save(tmp_path, 7)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, jax.device_put(state_of(8)), {})
    with pytest.raises(OSError, match="got another state of this step"):
        checkpoints.close()
    assert_is(restore(tmp_path), 7)


def test_a_reader_may_leave_out_what_it_does_not_need(saved):
    """Weights alone are restored, and the digest is still that of the whole state."""
    restored = restore(saved, {"params": like()["params"]}, owned=False)
    chex.assert_trees_all_equal(jax.device_get(restored.state), {"params": state_of(7)["params"]})
    assert restored.digest == digest(jax.device_put(state_of(7)))


def test_a_reader_writes_nothing(saved, tmp_path):
    """A reader does not even create a missing directory."""
    assert restore(tmp_path / "missing", owned=False) is None
    assert list(tmp_path.iterdir()) == []


def test_who_does_not_own_the_run_mends_nothing(saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path / "run")
    flip(0.5)(tmp_path / "run" / "7" / "manifest")
    before = contents(tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run", owned=False)
    assert_is(checkpoints.restore_newest(like()), 3)
    checkpoints.close()
    assert contents(tmp_path / "run") == before
    assert "is damaged (" in capsys.readouterr().err


def test_what_a_kill_left_behind_is_cleared_by_the_owner(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "tmp-saving-9" / "state").mkdir(parents=True)
    for owned in False, True:
        checkpoints = Checkpoints(tmp_path / "run", owned=owned)
        assert_is(checkpoints.restore_newest(like()), 7)
        checkpoints.close()
        assert (tmp_path / "run" / "tmp-saving-9").exists() != owned


def test_digest_is_of_the_values():
    """It depends on the values, not on the devices that hold them."""
    spread = jax.device_put(state_of(1), jax.tree.map(lambda x: x.sharding, like(4)))
    assert digest(spread) == digest(jax.device_put(state_of(1))) != digest(jax.device_put(state_of(2)))


def test_no_checkpoint(tmp_path):
    assert restore(tmp_path) is None


def test_damaged_twice(tmp_path, capsys):
    """The run resumes from the older step and saves the same number, which is damaged again: both are kept."""
    for attempt in 1, 2, 3:
        save(tmp_path, *((3, 7) if attempt == 1 else (7,)))
        (tmp_path / "7" / "manifest").write_text(str(attempt))
        assert_is(restore(tmp_path), 3)
        assert f"set aside as damaged-7-{attempt}," in capsys.readouterr().err
    kept = [(tmp_path / f"damaged-7-{attempt}" / "manifest").read_text() for attempt in (1, 2, 3)]
    assert kept == ["1", "2", "3"]


def test_after_a_fall_back_the_same_object_saves_again(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    truncate(0)(tmp_path / "run" / "7" / "manifest")
    checkpoints = Checkpoints(tmp_path / "run")
    assert_is(checkpoints.restore_newest(like()), 3)
    checkpoints.save(7, jax.device_put(state_of(7)), {"seconds": 7 / 3})
    checkpoints.close()
    assert_is(restore(tmp_path / "run"), 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opt": [np.zeros(9)]}, r"opt\.0 as float64\[9\], got float32\[64, 50\]"),
        ({"step": np.int16(0)}, r"step as int16\[\], got int32\[\]"),
        ({"opt": []}, r"opt\.0 as missing, got float32\[64, 50\]"),
        ({"ema": np.zeros(2)}, r"ema as float64\[2\], got missing"),
    ],
)
@pytest.mark.parametrize("newest_damaged", [False, True])
def test_another_network_is_refused_and_nothing_touched(saved, tmp_path, changes, message, newest_damaged):
    shutil.copytree(saved, tmp_path / "run")
    if newest_damaged:
        truncate(0)(tmp_path / "run" / "7" / "manifest")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"/run/\d must hold {message}, of another network; choose"):
        restore(tmp_path / "run", like(**changes))
    assert contents(tmp_path / "run") == before


def test_four_devices_then_one_then_two(tmp_path):
    """Values are restored exactly, on the requested devices and with the requested sharding."""
    state = jax.device_put(state_of(1), jax.tree.map(lambda x: x.sharding, like(4)))
    for step, target in enumerate([like(), like(2), like(4, PartitionSpec("data"))], 1):
        if step == 3:
            del target["params"]["b"], state["params"]["b"]  # three numbers cannot be split
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(step, state, {})
        _, restored, *_ = checkpoints.restore_newest(target)
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


def test_a_file_system_that_cannot_flush_folders_or_delete_what_is_read(tmp_path, monkeypatch):
    """Checkpoints are saved nevertheless, and what could not be deleted is deleted later."""
    flush, delete = os.fsync, shutil.rmtree

    def of_files(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(handle)

    def in_use(path, ignore_errors=False, **options):
        if "deleting" in str(path) and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        if "deleting" not in str(path):
            delete(path, ignore_errors, **options)

    monkeypatch.setattr(os, "fsync", of_files)
    monkeypatch.setattr(shutil, "rmtree", in_use)
    save(tmp_path, 1, 2, 3, keep=1)
    assert {path.name[:14] for path in tmp_path.iterdir()} == {"3", "tmp-deleting-1", "tmp-deleting-2"}
    monkeypatch.undo()
    assert_is(restore(tmp_path), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_full_disk(saved, tmp_path, capfd):
    """A save without space raises OSError of one line and prints nothing; the next save works again."""
    shutil.copytree(saved, tmp_path / "run")
    before = contents(tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        checkpoints.save(9, jax.device_put(state_of(9)), {"seconds": 3.0})
        with pytest.raises(
            OSError, match=r"no checkpoint could be written to .*/run \(.*\); older checkpoints"
        ) as error:
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    after = contents(tmp_path / "run")
    assert {path: after[path] for path in before} == before
    assert_is(restore(tmp_path / "run"), 7)
    save(tmp_path / "run", 9)
    assert_is(restore(tmp_path / "run"), 9)
