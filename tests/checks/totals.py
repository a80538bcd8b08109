#!/usr/bin/env python3
"""Adds up the reports of GoogleTest and pytest (JUnit XML) under the given folders: a line per folder, skipped tests by reason, and the totals last.

usage: totals.py NAME=FOLDER ...     exit 1 when a test failed or a folder holds no report
"""
import collections
import pathlib
import sys
import xml.etree.ElementTree as ET


def read(folder):
    passed = failed = 0
    skipped = collections.Counter()
    for report in sorted(pathlib.Path(folder).glob("*.xml")):
        for case in ET.parse(report).getroot().iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                failed += 1
                print(f"  FAILED {case.get('classname')}.{case.get('name')}")
            elif case.find("skipped") is not None or case.get("result") == "skipped":
                message = case.find("skipped").get("message", "") if case.find("skipped") is not None else ""
                if message == "collection skipped":  # pytest, of a whole file: the reason is in the text
                    message = (case.find("skipped").text or message).split("Skipped: ")[-1].rstrip("\"')")
                skipped[message.strip().split("\n")[-1][:100]] += 1
            elif case.get("status", "run") == "run":  # GoogleTest lists what it did not run, pytest knows no status
                passed += 1
    return passed, failed, skipped


def main():
    total = [0, 0, 0]
    empty = False
    for argument in sys.argv[1:]:
        name, folder = argument.split("=", 1)
        passed, failed, skipped = read(folder)
        empty |= passed + failed == 0
        print(f"{name}: {passed} passed, {failed} failed, {sum(skipped.values())} skipped")
        for reason, count in skipped.most_common():
            print(f"  skipped {count}: {reason}")
        total = [total[0] + passed, total[1] + failed, total[2] + sum(skipped.values())]
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped")
    return 1 if total[1] or empty else 0


if __name__ == "__main__":
    sys.exit(main())
