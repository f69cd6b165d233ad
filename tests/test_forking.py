"""The forked processes of the tests are as fresh as they have to be."""

import os
import signal

from tests import forking


def test_a_forked_process_is_python_with_its_arguments(tmp_path):
    (tmp_path / "program.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.getcwd(), os.environ['WHO'])\n"
        "print('trouble', file=sys.stderr)\nsys.exit(3)\n"
    )
    env = {**os.environ, "WHO": "me"}
    for arguments in (["-m", "program", "a"], [tmp_path / "program.py", "a"]):
        done = forking.run(arguments, cwd=tmp_path, env=env)
        assert done.stdout == f"['a'] {tmp_path} me\n"
        assert done.stderr == "trouble\n"
        assert done.returncode == 3
    code = "import sys; print(sys.argv[1], __name__)"
    assert forking.run(["-c", code, "b"]).stdout == "b __main__\n"


def test_tensorflow_has_not_run_before_the_fork():
    code = (
        "import sys\n"
        "assert 'keras_distill.tuning.search' in sys.modules\n"
        "import tensorflow as tf\n"
        "assert tf.config.threading.get_intra_op_parallelism_threads() == 0\n"
        "tf.config.threading.set_intra_op_parallelism_threads(3)\n"  # refused later
        "print(tf.config.list_logical_devices('CPU'), len(tf.ones(3)))\n"
    )
    done = forking.run(["-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("LogicalDevice") == 1
    assert done.stdout.endswith(" 3\n")


def test_a_signal_reaches_the_process(tmp_path):
    code = "import time\nprint('begun', flush=True)\ntime.sleep(60)\n"
    for number, returncode in ((signal.SIGINT, 1), (signal.SIGKILL, -9)):
        with forking.Process(["-c", code]) as process:
            forking.wait_for(lambda process=process: process.stdout)
            process.send_signal(number)
            assert process.wait(10) == returncode


def test_pools_are_forked_everywhere():
    code = (
        "import os, tempfile\n"
        "from keras_distill import processes\n"
        "seats = processes.Seats.of(2)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    done = processes.spread(lambda i: os.getppid(), [1, 2], seats=seats,\n"
        "                            folder=folder)\n"
        "    print({o.value for o in done} == {os.getppid()})\n"
    )
    done = forking.run(["-c", code])
    assert done.stdout == "True\n", done.stderr
