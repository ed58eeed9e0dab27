"""`python -m grpo_pl compare`: from run folders to a table, one HTML file, and Markdown with pictures."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import command
from helpers.made_up import write_run, write_samples

from grpo_pl.commands.compare import compare
from grpo_pl.commands.compare.costs import TIME, cost_of, pareto
from grpo_pl.commands.compare.curves import curve
from grpo_pl.commands.compare.figures import LIGHT, Picture
from grpo_pl.commands.compare.groups import Group, group_runs
from grpo_pl.commands.compare.report.answering import Sentence
from grpo_pl.commands.compare.report.document import Document, Section, Table, document
from grpo_pl.commands.compare.report.rendering import html, markdown, plain
from grpo_pl.commands.compare.report.wording import number, p_value
from grpo_pl.commands.compare.responses import Dialogue, GroupResponse, side_by_side
from grpo_pl.commands.compare.runs import SECONDS, TOKENS, read_runs

VOID = {"meta", "link", "br", "hr", "img"}


def text_of(*paths: Path, base: str | None = None) -> str:
    """What the Markdown says, without drawing anything and without its escapes."""
    return markdown(document(compare(paths, base)), "pictures").replace("\\", "")


class Balance(HTMLParser):
    """Checks that tags close each other, and keeps what a page refers to and its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_refers_to_nothing_outside_it(report):
    page = Balance()
    text = (report / "report.html").read_text(encoding="utf-8")
    page.feed(text)
    assert page.open == []
    assert {reference for reference in page.references if not reference.startswith("#")} == {"data:,"}
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert "<script" not in text
    assert "url(http" not in text


def test_the_page_draws_in_its_own_colours_and_the_base_in_grey(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert f"--s0: {LIGHT.base};" in text
    red, green, blue = (int(LIGHT.base[i : i + 2], 16) for i in (1, 3, 5))
    assert red == green == blue
    drawn = "".join(re.findall(r"<figure>.*?</figure>", text, re.DOTALL))
    assert {"var(--s0)", "var(--s1)", "var(--s2)", "currentColor"} <= set(
        re.findall(r"var\(--s\d\)|currentColor", drawn)
    )
    assert not re.findall(r"#[0-9a-fA-F]{6}", re.sub(r'(href|id)="[^"]*"|url\([^)]*\)', "", drawn))


def test_what_runs_say_is_text_and_never_markup(report):
    page, text = ((report / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert "no-kl &lt;b&gt;says&lt;/b&gt; | 42" in page
    assert r"no-kl \<b\>says\</b\> \| 42" in text


def test_a_hostile_name_is_escaped_wherever_it_stands():
    bad = "<script>alert('1') & co"
    dialogue = Dialogue(bad, bad, "1", 1, (GroupResponse(bad, f"{bad}\x07", 1.0, truncated=True),))
    picture = Picture(f'{bad}" onload="', bad, bad, lambda axes, _: axes.set_yticks([0], [bad]))
    table = Table([bad, bad], [[bad, bad]])
    section = Section("Outcome", [bad], [table], [picture], [dialogue], [bad])
    answer = Sentence(bad, bad, "settled", bad, bad)
    report = Document(bad, [bad], bad, bad, bad, [answer], [bad], [bad], [bad], [], [section])
    text, page = html(report), Balance()
    page.feed(text)
    assert page.open == []
    assert "<script" not in text
    assert 'co&#34; onload=&#34;"' in text
    assert text.count("&lt;script&gt;alert(&#39;1&#39;) &amp; co") >= 15
    assert "co\ufffd</pre>" in text
    assert "<script" not in markdown(report, "pictures").replace("\\<", "")


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_both_forms_say_all(name, report):
    text = (report / name).read_text(encoding="utf-8").replace("\\", "")
    for part in (
        *("What differs", "Outcome", "Learning curves", "Cost", "Inside training", "Responses", "Runs"),
        *(
            "KLInLoss(coefficient=0.01)",
            "GAE(lam=0.9)",
            "peak memory, GiB",
            "models held",
            "p, Holm",
            "Hedges",
        ),
        *("200 validation problems", "With 3 pairs a rank or sign test cannot fall below p = 0.25"),
        *("What is 40 + 2?", "critic, seed 4, ended after iteration 1 of 2", "it never started"),
        "It lowers validation accuracy by 0.295",
        "Seconds are those of sync, generate, score and update",
    ):
        assert part in text or part.replace("'", "&#39;") in text, part


def test_the_pictures_of_the_markdown_stand_beside_it(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 5
    for picture in pictures:
        assert (report / picture).read_bytes().startswith(b"\x89PNG")


def test_the_terminal_shows_the_tables_the_findings_the_remarks_and_where_the_report_is(report):
    text = (report / "terminal.txt").read_text(encoding="utf-8")
    for part in (
        "What differs",
        "Outcome",
        "p, Holm",
        "peak memory",
        "It lowers validation",
        "! critic, seed 4",
    ):
        assert part in text
    assert f"{report / 'report.html'}" in text.replace("\n", "")


def test_one_run_alone_has_a_report_too(config, tmp_path):
    text = text_of(write_run(tmp_path / "one", config))
    assert "nothing to compare them with" in text
    assert "Nothing but seeds and folders." in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "compare: the following arguments are required: RUN"),
        (["{tmp}"], "holds no run"),
        (["{tmp}/nowhere"], "there is no folder"),
        (["{tmp}", "--metrics", "x"], "unrecognized arguments: --metrics"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, refused):
    words = (argument.format(tmp=tmp_path) for argument in arguments)
    assert sentence in refused(command, "compare", *words)
    assert list(tmp_path.iterdir()) == []


def test_real_runs_of_one_seed_have_the_same_prompts_and_are_compared(fit, tmp_path):
    for variant, extra in (("base", ()), ("no-kl", ("--model.kl", "null"))):
        options = ("--seed_everything", 3, "--data.seed", 3, "--trainer.max_epochs", 1, "--samples.every", 0)
        fit(*options, *extra, root=tmp_path / variant / "seed-3")
    text = text_of(tmp_path)
    assert "| model.kl | KLInLoss(coefficient=0.01) | null |" in text
    assert "Seed 3, iteration 1: the first response" in text
    assert "| models held | 2 | 1 (0.50x) |" in text
    assert "one pair: not known" in text
    assert "the 8 validation problems" in text


def test_a_run_without_validations_of_the_metric_is_not_in_the_table_of_those_that_have(config, tmp_path):
    """A metric that only some groups have is a dash for the others, and no crash."""
    a = write_run(tmp_path / "a", config)
    b = write_run(tmp_path / "b", config, changes={"model.kl": None})
    lines = [",".join(c for c in line.split(",")) for line in (b / "metrics.csv").read_text().splitlines()]
    (b / "metrics.csv").write_text(
        "\n".join([lines[0].replace("val/accuracy", "val/other"), *lines[1:]]) + "\n"
    )
    assert "| kl=null | 0 | - | - | - |" in text_of(a, b)


def test_a_curve_is_the_mean_over_seeds_with_its_interval(config, tmp_path):
    for seed, last in ((1, 0.5), (2, 0.6)):
        write_run(tmp_path / "one" / f"seed-{seed}", config, seed=seed, accuracies=[0.2, 0.4, last])
    (group,) = group_runs(read_runs([tmp_path]))
    found = curve(group, "val/accuracy")
    assert found.x.tolist() == [0, 1, 2]
    assert found.mean == pytest.approx([0.2, 0.4, 0.55])
    # by hand: variance 0.005, t(0.975, 1) = 12.7062047
    half = 12.7062047 * 0.005**0.5 / 2**0.5
    assert found.low == pytest.approx([0.2, 0.4, 0.55 - half])
    assert found.high == pytest.approx([0.2, 0.4, 0.55 + half])


@pytest.mark.parametrize("along", [TOKENS, SECONDS])
def test_along_tokens_and_seconds_runs_are_interpolated_where_all_have_been(along, config, tmp_path):
    for seed in (1, 2):  # accuracy grows with iterations alone, tokens and seconds differ by seed
        write_run(tmp_path / "one" / f"seed-{seed}", config, seed=seed, accuracies=[0.2, 0.4, 0.6])
    (group,) = group_runs(read_runs([tmp_path]))
    found = curve(group, "val/accuracy", along)
    sums = [sum(run.measured(along)) for run in group.runs]
    assert (found.x[0], found.x[-1]) == (0, min(sums))
    shorter = int(np.argmin(sums))
    end = np.interp(min(sums), *found.runs[1 - shorter])
    assert found.mean[-1] == pytest.approx((0.6 + end) / 2)


def test_runs_that_did_not_end_are_drawn_and_in_no_mean(config, tmp_path):
    write_run(tmp_path / "one" / "seed-1", config, seed=1, accuracies=[0.2, 0.4])
    write_run(tmp_path / "one" / "seed-2", config, seed=2, accuracies=[0.2], planned=1)
    (group,) = group_runs(read_runs([tmp_path]))
    found = curve(group, "val/accuracy")
    assert found.mean.tolist() == [0.2, 0.4]
    assert found.low is None
    assert len(found.unfinished) == 1
    assert curve(group, "val/nothing") is None


def test_one_disturbed_run_does_not_make_its_group_dear(config, tmp_path):
    for seed, cost in ((1, 1.0), (2, 40.0), (3, 1.0), (4, 1.0)):
        write_run(tmp_path / "one" / f"seed-{seed}", config, seed=seed, accuracies=[0.2, 0.4, 0.6], cost=cost)
    (group,) = group_runs(read_runs([tmp_path]))
    costs = sorted(sum(run.measured(SECONDS)) for run in group.runs)
    assert cost_of(group, TIME) == pytest.approx((costs[1] + costs[2]) / 2)
    assert cost_of(group, TIME) < costs[3] / 5


def test_the_pareto_front_by_hand():
    # cheaper or better than each other; (3, 0.5) costs more than (2, 0.5), and (4, 0.2) is worse than all
    assert pareto([(2.0, 0.5), (1.0, 0.3), (3.0, 0.5), (4.0, 0.2), (5.0, 0.6)]) == [
        (1, 0.3),
        (2, 0.5),
        (5, 0.6),
    ]


def test_responses_are_of_one_seed_and_the_last_iteration_that_all_have(config, tmp_path):
    for variant, iterations in (("a", (1, 2, 3)), ("b", (1, 2))):
        folder = write_run(tmp_path / variant / "seed-1", config)
        for i in iterations:
            write_samples(folder, {f"x{i}": f"{variant}, {i}", f"y{i}": "-", f"{variant} alone": "-"}, i)
        with (folder / "samples.jsonl").open("a") as file:
            file.write('{"iteration": 4, "prompt": "torn')
    groups = group_runs(read_runs([tmp_path]))
    first, second = side_by_side(groups)
    assert (first.seed, first.iteration, first.prompt, second.prompt) == ("1", 2, "x2", "y2")
    assert [(r.group, r.text) for r in first.responses] == [("a", "a, 2"), ("b", "b, 2")]
    assert side_by_side([Group("alone", groups[0].runs)]) == []


def test_the_first_lines_all_look_different():
    looks = {tuple(sorted(LIGHT.line(i).items())) for i in range(24)}
    assert len(looks) == 24


def test_numbers_in_words():
    assert (number(1234.5678, 1), number(-0.0312, sign=True), number(None)) == ("1,234.6", "-0.031", "-")
    assert (p_value(0.0004), p_value(0.25), p_value(None)) == ("<0.001", "0.250", "-")
    assert plain("a|b\n*c*") == r"a\|b \*c\*"
