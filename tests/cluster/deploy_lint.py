#!/usr/bin/env python3
"""Looks at docs/deploy with the tools that `tools/bootstrap lint` installs; says which are not here.   deploy_lint.py DIRECTORY"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

directory = sys.argv[1]
problems = []
ran = 0


def note(text):
    print("lint:", text)


def look(what, done):
    global ran
    ran += 1
    text = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        problems.append(f"{what}:\n{text}")
    else:
        note(f"{what}: fine")


def shell():
    scripts = sorted(glob.glob(f"{directory}/*.sh"))
    for script in scripts:
        look(f"bash -n {os.path.basename(script)}", subprocess.run(["bash", "-n", script], capture_output=True, text=True))
        if shutil.which("shellcheck"):
            look(f"shellcheck {os.path.basename(script)}", subprocess.run(["shellcheck", script], capture_output=True, text=True))
        else:
            note("shellcheck is not installed: left out")


def units():
    if not shutil.which("systemd-analyze"):
        return note("systemd-analyze is not installed: units are left out")
    for unit in sorted(glob.glob(f"{directory}/*.service")):
        with tempfile.TemporaryDirectory() as place:
            # The program, its user and the like are not on this machine; the directives are what is looked at.
            text = open(unit).read().replace("/usr/local/bin/troupe", "/bin/true").replace("EnvironmentFile=/", "EnvironmentFile=-/")
            text = re.sub(r"^(User|Group)=troupe$", r"\1=nobody", text, flags=re.M).replace("Group=nobody", "Group=nogroup")
            copy = os.path.join(place, os.path.basename(unit))
            with open(copy, "w") as file:
                file.write(text)
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copy], capture_output=True, text=True)
            # Unknown keys and sections are only warned of.
            if re.search(r"Unknown|Failed to parse|Invalid|not executable", done.stdout + done.stderr):
                done.returncode = done.returncode or 1
            look(f"systemd-analyze verify {os.path.basename(unit)}", done)
            score = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=30", copy], capture_output=True, text=True)
            if "unrecognized option" not in score.stderr:
                score.stdout = score.stdout[-300:]
                look(f"systemd-analyze security {os.path.basename(unit)}, exposure at most 3.0", score)


def manifests():
    cache = os.environ.get("TROUPE_CACHE", os.path.expanduser("~/.cache/troupe"))
    for place in glob.glob(f"{cache}/kubernetes-validate-*"):
        sys.path.insert(0, place)
    try:
        import yaml
    except ImportError:
        return note("PyYAML is not installed: manifests are left out")
    try:
        import kubernetes_validate
    except ImportError:
        kubernetes_validate = None
        note("kubernetes-validate is not installed: manifests are only parsed")
    global ran
    for manifest in sorted(glob.glob(f"{directory}/kubernetes/*.yaml")):
        for document in yaml.safe_load_all(open(manifest)):
            what = f"{os.path.basename(manifest)}, {document['kind']} {document['metadata']['name']}"
            ran += 1
            try:
                if kubernetes_validate:
                    kubernetes_validate.validate(document, "1.31", strict=True)
                note(f"{what}: fine")
            except Exception as error:  # of whichever schema library it brings
                problems.append(f"{what}: {getattr(error, 'message', error)}")


shell()
units()
manifests()
for problem in problems:
    print("lint: WRONG:", problem)
sys.exit(1 if problems or ran == 0 else 0)
