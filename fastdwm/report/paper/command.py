"""python -m fastdwm.report paper [FOLDER]: the paper's tables from the finished evaluations of a sweep.

Heavy packages are imported inside the functions: --help answers before numpy is loaded; torch never is.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from fastdwm import command
from fastdwm.files import prepare_folder, write_atomically, write_json
from fastdwm.report.config import PaperConfig
from fastdwm.report.paper.evaluations import read_evaluations
from fastdwm.tables import csv_text


def main(folder: Path, config: PaperConfig) -> None:
    """Make the paper's Tables 1, 2, 4 and 5 from the finished evaluations of a sweep.

    The tables and the verdicts go to stdout, all results to OUT/paper.md, .csv, .json and .html, a page without other
    files. Tasks that are not finished are shown as missing, and the page leaves them out. Our data are not D4RL's;
    the published numbers are shown for comparison.
    """
    evaluations = read_evaluations(folder)
    prepare_folder(config.out)
    from fastdwm.report.paper import page, plot, published, sentences, text
    from fastdwm.report.paper.results import summarise
    from fastdwm.report.paper.tables import all_tables

    results = summarise(evaluations, published.LOCOMOTION)
    tables, verdicts, notes = all_tables(results), sentences.verdicts(results), sentences.notes(results)
    pictures = {
        "Paired difference to the base policy, with its 95 % interval.": plot.differences(
            results, published.LOCOMOTION
        ),
        "Mean score of the base policy and of ITPO.": plot.scores(results, published.LOCOMOTION),
    }
    record = {
        "sentences": verdicts,
        "notes": notes,
        "cells": [evaluation.path.name for evaluation in evaluations],
        **asdict(results),
    }
    record |= {"published": {task: text.published_of(task) for task in published.LOCOMOTION + published.MAZES}}
    contents = {
        "md": text.markdown(tables, verdicts, notes),
        "csv": csv_text(text.csv_rows(results)),
        "html": page.page(tables, verdicts, notes, pictures, results.tasks),
    }
    write_json(config.out / "paper.json", record)
    for kind, content in contents.items():
        write_atomically(config.out / f"paper.{kind}", content.encode())
    text.print_report(tables, verdicts, notes)
    for kind in ("json", *contents):
        print(config.out / f"paper.{kind}")


FOLDER = "[FOLDER]", "a sweep's folder, with its cells/", Path, Path("results/sweep")
parse = partial(command.read, PaperConfig(), "python -m fastdwm.report paper", main.__doc__, folder=FOLDER)
