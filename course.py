"""Start here: makes the environment, then runs the course in it.

    python course.py lab             open the notebooks in JupyterLab
    python course.py test            run every test
    python course.py test --quick    an answer in minutes; says what it left out
    python course.py explore "text"  see which experts each token goes to
    python course.py train           train a small Mixtral
    python course.py bench           time it beside other implementations
    python course.py build           rebuild notebooks and exercises from their sources
    python course.py book            make a website of it all
    python course.py reproduce NAME  run a paper's experiment again and judge it
    python course.py read            see which files to read, and one token's trip through them
    python course.py teach           make a lab out of exercises, and grade it

The first run makes .venv and installs into it; inside an active environment (venv or
conda) that one is used instead. Everything goes on to `python -m moe_lite`, so
`python course.py train --help` says more.
"""

# Every Python since 2.7 can read this page, so that it can say which one the course takes.
import os
import signal
import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit(
            "The course needs Python 3.11 to 3.14, but this is Python {}.{} ({}): run course.py "
            "with a newer one, for instance `python3.12 course.py lab`.".format(
                sys.version_info[0], sys.version_info[1], sys.executable
            )
        )
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else told to ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing has begun: Ctrl-C just ends it
    here = os.path.dirname(os.path.abspath(__file__))
    if not os.path.isdir(os.path.join(here, "moe_lite")):
        sys.exit(
            "course.py: there is no moe_lite in {}: it needs the whole repository".format(here)
        )
    sys.path.insert(0, here)
    from moe_lite.course.environment import start

    sys.exit(start(sys.argv[1:], __doc__))
