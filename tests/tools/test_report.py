"""The report is opened in a real browser: it loads without a complaint, moves, and survives whatever a model writes."""

import json
import re
import shutil
from unittest.mock import patch

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import hf_diffusion_forcing
from hf_diffusion_forcing import Trace
from hf_diffusion_forcing.command_line import report as report_command
from hf_diffusion_forcing.command_line.app import app
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.visualization.report import Report, json_for_script, pieces
from support import left_pad, random_model

HOSTILE = [
    "</script><script>document.title='hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\">",
    "<!--",
    "]]>",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "&lt;b&gt;",
    "\u2028\u2029",
    "\"'`${1}\\",
    "$x^$",
    "\U0001f9ea",
    "\u202eright to left",
    "\n",
    "\0",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("chromium or chromedriver is not installed (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
        "window-size=1100,1000",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def opened(browser, path):
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    return lambda selector: browser.find_element("css selector", selector)


def new_text(browser, where):
    """What stands after the prompt, special tokens left out."""
    return browser.execute_script(f"return {joined(f'{where} .token:not(.special), {where} .draft')}")


def joined(selector):
    """A script's expression for the text of elements."""
    return f"[...document.querySelectorAll('{selector}')].map(e => e.textContent).join('')"


def move(browser, tick):
    browser.execute_script(
        "const s = document.getElementById('slider'); s.value = arguments[0]; s.dispatchEvent(new Event('input'));",
        tick,
    )


def run(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def page(tmp_path_factory, brief):
    path = tmp_path_factory.mktemp("report") / "page.html"
    with patch.object(hf_diffusion_forcing, "bundled_checkpoint", lambda: brief):
        result = run("--html", path, "--max-new-tokens", 24)
    assert result.exit_code == 0, result.stderr
    assert str(path) in result.stdout
    return path


@pytest.fixture(scope="module")
def text(bundled, brief):
    """What the default report is about."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(brief).eval(), bundled[1]
    inputs = tokenizer(next(problems(7, held_out=True, kind="worked")).prompt, return_tensors="pt")
    ids = model.generate(**inputs, sampler="diffusion_forcing", inner_recurrence=1, seed=0, max_new_tokens=24)
    return tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def test_the_text_and_its_ticks(browser, page, text):
    find = opened(browser, page)
    assert "bundled checkpoint" in find("h1").text
    assert new_text(browser, "#text") == new_text(browser, "#stage") == text
    last = int(find("#slider").get_attribute("max"))
    seen, final = set(), []
    for tick in range(last + 1):
        move(browser, tick)
        done = browser.execute_script(f"return {joined('#stage .token:not(.special)')}")
        assert text.startswith(done)
        final.append(done)
        seen.add(find("#stage").get_property("textContent"))
        assert find("#status").text.startswith(f"Tick {tick} of {last}" if tick else "Before the first tick")
    assert final[0] and final[-1] == text and final == sorted(final, key=len)
    # Drafts change as well as the tokens that are final.
    assert len(seen) > 0.8 * last
    assert browser.get_log("browser") == []


def test_keys_and_the_play_button(browser, page):
    find = opened(browser, page)
    last = int(find("#slider").get_attribute("max"))
    slider = find("#slider")
    assert slider.get_attribute("aria-label") == "Tick"
    slider.send_keys("\ue012")  # left
    assert slider.get_property("value") == str(last - 1)
    assert slider.get_attribute("aria-valuetext") == find("#status").text
    move(browser, last - 3)
    find("#play").send_keys("\ue007")  # enter
    assert find("#play").text == "Pause"
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda _: find("#play").text == "Play")
    assert slider.get_property("value") == str(last)
    # One stop for all tokens, then arrow keys.
    tokens = browser.find_elements("css selector", "#text .token")
    assert [token.get_attribute("tabindex") for token in tokens] == ["0"] + ["-1"] * (len(tokens) - 1)
    tokens[0].send_keys("\ue014")  # right
    assert browser.switch_to.active_element == tokens[1]
    assert "recurrences, committed in tick" in find("#details").text and "exit value" in find("#details").text


def test_pictures_are_there_and_the_tick_is_marked(browser, page):
    find = opened(browser, page)
    sizes = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length, i.width])"
    )
    assert len(sizes) == 4
    assert all(done and natural > 100 and alt > 20 and width <= 1000 for done, natural, alt, width in sizes)
    move(browser, 1)
    above = find("#now").rect
    move(browser, 5)
    below, picture = find("#now").rect, find(".heat img").rect
    assert below["y"] == pytest.approx(above["y"] + 4 * above["height"], rel=0.1)
    assert picture["y"] < above["y"] and below["y"] + below["height"] < picture["y"] + picture["height"]


def test_speeds_are_those_of_the_call(browser, page):
    opened(browser, page)
    rows = [row.text for row in browser.find_elements("css selector", "tbody tr")]
    assert [row.split()[0] for row in rows] == ["autoregressive", "diffusion_forcing", "speculative_wavefront"]
    assert "1.0x 100%" in rows[0] and rows[2].endswith("100%")


def test_without_a_script_and_on_paper_the_text_is_there(browser, page, text):
    source = page.read_text()
    body = re.search(r'<span id="text".*?</div>', source, re.DOTALL).group()
    assert re.sub(r"<span[^>]*special.*?</span>|<.*?>", "", body) == text
    opened(browser, page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = browser.find_element("id", "text").is_displayed(), browser.find_element("id", "animation").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert shown == (True, False)


def test_the_page_is_complete(page):
    source = page.read_text()
    for address in re.findall(r'(?:src|href|action|srcset)="([^"]*)"', source):
        assert address.startswith("data:")
    assert "url(" not in source and "@import" not in source and "http" not in re.sub(r"http-equiv", "", source)
    assert [each.name for each in page.parent.iterdir()] == [page.name]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page about a model all of whose tokens are hostile, and the text it wrote."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({f"{HOSTILE[i % len(HOSTILE)]}{i}": i for i in range(61)}, "\U0001f9ea10"))
    )
    prompt = list(range(14))
    output = random_model().generate(
        **left_pad([prompt]),
        sampler="diffusion_forcing",
        do_sample=True,
        top_k=0,
        temperature=2.0,
        seed=1,
        max_new_tokens=100,
        exit_threshold=0.2,
        return_trace="latents",
        return_dict_in_generate=True,
    )
    facts = [(each, each) for each in HOSTILE]
    report = Report(HOSTILE[0], facts, tokenizer, prompt, output.trace, measured=HOSTILE[1])
    path = report.save(tmp_path_factory.mktemp("report") / "hostile.html")
    before, whole = (tokenizer.decode(ids) for ids in (prompt, prompt + output.trace.new_tokens()))
    return path, whole.removeprefix(before)


def test_hostile_tokens_are_text(browser, hostile):
    path, text = hostile
    assert all(each in text for each in HOSTILE)
    find = opened(browser, path)
    assert browser.title == f"How {HOSTILE[0]} wrote this text"
    expected = text.replace("\0", "\ufffd")
    assert new_text(browser, "#stage").replace("\0", "\ufffd") == expected
    # What the parser reads, rather than a script writes, has no NUL.
    assert new_text(browser, "#text").replace("\0", "\ufffd") in (expected, text.replace("\0", ""))
    for tick in range(int(find("#slider").get_attribute("max")) + 1):
        move(browser, tick)
    assert browser.execute_script("return document.scripts.length") == 2
    assert not browser.find_elements("css selector", "img[src=x]")
    assert browser.get_log("browser") == [] and "hacked" in browser.title  # as its text, with the tags around it


def test_a_script_that_got_in_would_not_run(browser, hostile):
    """The page's policy lets its own script run alone."""
    path = hostile[0]
    wounded = path.with_name("wounded.html")
    wounded.write_text(path.read_text().replace("<main>", "<main><script>document.title = 'ran'</script>"))
    browser.get(wounded.as_uri())
    assert browser.title != "ran"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_a_script_is_only_json(text):
    written = json_for_script({text: [text]})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {text: [text]}


def test_pieces_make_up_the_text(bundled):
    tokenizer = bundled[1]
    generator = torch.manual_seed(0)
    for _ in range(20):
        ids = torch.randint(0, len(tokenizer), (30,), generator=generator).tolist()
        whole = tokenizer.decode([*ids[:4], *ids], clean_up_tokenization_spaces=False)
        parts = pieces(tokenizer, ids, ids[:4])
        assert len(parts) == len(ids)
        assert tokenizer.decode(ids[:4], clean_up_tokenization_spaces=False) + "".join(parts) == whole


@pytest.mark.parametrize(
    ("arguments", "figures", "first"),
    [
        (["--preset", "lossless"], 3, "lossless"),
        (["--sampler", "adaptive", "--exit-criterion", "fixed"], 3, "adaptive"),
    ],
)
def test_other_samplers(browser, tmp_path, arguments, figures, first):
    path = tmp_path / "page.html"
    prompt = "Q: Start at 3 + 2. Last digit?\nA:"
    result = run("--html", path, "--prompt", prompt, "--num-steps", 8, *arguments)
    assert result.exit_code == 0, result.stderr
    opened(browser, path)
    assert browser.execute_script("return document.images.length") == figures
    assert browser.find_elements("css selector", "tbody tr")[1].text.startswith(f"{first} (this page)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--html", "nowhere/page.html"], "there is no folder"),
        (["--html", "."], "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report_command, "load", lambda *_: pytest.fail("the model was loaded"))
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "autoregressive"], "has no ticks"),
        (["--sampler", "diffusion"], "did you mean"),
        (["--wavefront", "0"], "wavefront=0"),
        (["--preset", "slow"], "sampler_preset='slow'"),
        (["--max-new-tokens", "1"], "another prompt"),
        (["--prompt", ""], "empty"),
    ],
)
def test_bad_settings(tmp_path, arguments, message):
    result = run("--html", tmp_path / "page.html", *arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_is_not_whole_is_refused(bundled):
    trace = Trace(sampler="adaptive", budget=4, starts=[3], first_tokens=[1], unrecorded=2)
    with pytest.raises(ValueError, match="Lower max_new_tokens"):
        Report("model", [], bundled[1], [1, 2, 3], trace).html()
