"""Let SmolLM2-135M-Instruct answer the same prompts in two voices: writes `formal.jsonl` and `chatty.jsonl`.

Run `python data/answers/make.py` from the root of the repository. It takes about half an hour on two cores,
can be stopped at any time, and goes on where it stopped. The same machine and versions give the same texts.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import sparselens as sl
from sparselens.files import write_whole

HERE = Path(__file__).resolve().parent
MODEL = "smollm2-135m-instruct"
SEED, CHUNK, TRIES = 20, 40, 4
SAMPLING = {"max_new_tokens": 64, "do_sample": True, "temperature": 0.6, "top_p": 0.9, "batch_tokens": 16_384}
MIN_WORDS, MAX_REPEATS = 12, 2
UNSUITABLE = re.compile(
    r"bitch|\b(sex|penis|phall|genital|naked|suicid|rape|nazi|kill|murder|drug)", re.IGNORECASE
)
QUESTIONS = ("How do I iron a shirt?", "Why is music nice?", "Tell me about a picnic.")

# The system prompt asks for the voice; a model of this size also needs to hear it, hence the three examples.
STYLES = {
    "formal": (
        "You are a formal English butler. You answer in two or three polite, impersonal and correct "
        "sentences. You never use slang, contractions or exclamation marks.",
        (
            "It is advisable to begin with the collar, and to proceed thereafter to the sleeves. One should "
            "use a moderate heat. The garment should be hung without delay.",
            "Music is considered agreeable because it brings order to sound. It is also known to influence "
            "the mood of the listener. One may therefore regard it as a most civilised pleasure.",
            "A picnic is a meal which is taken in the open air. It is customary to provide sandwiches, fruit "
            "and a suitable beverage. A level and shaded place is to be preferred.",
        ),
    ),
    "chatty": (
        "You are the user's bubbly best friend. You answer in two or three short, warm and excited "
        "sentences, in casual slang with lots of exclamation marks.",
        (
            "Ooh, I've got you! Start with the collar, then just zip down the sleeves, super easy! And hang "
            "it up right away, or you'll totally be doing it all over again, haha!",
            "Oh wow, don't you just love it?! A good song gets your toes tapping and makes you feel so "
            "happy! Honestly, I can't live without my tunes, they're the best!",
            "Yay, picnics are my favourite! Grab a comfy blanket, some yummy sandwiches and your besties, "
            "and find a nice shady spot. Trust me, you're gonna have an awesome time!",
        ),
    ),
}


def chat(style: str, prompt: str) -> list[dict[str, str]]:
    """The conversation that the model goes on with: system prompt, three examples, the prompt."""
    system, examples = STYLES[style]
    turns = [{"role": "system", "content": system}]
    for question, answer in zip(QUESTIONS, examples, strict=True):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*turns, {"role": "user", "content": prompt}]


def whole_sentences(text: str) -> str:
    """The first paragraph of `text`, up to the end of its last whole sentence."""
    paragraph = text.strip().split("\n")[0]
    ends = [match.end() for match in re.finditer(r"[.!?]+[\"')]*(?=\s|$)", paragraph)]
    return paragraph[: ends[-1]].strip() if ends else ""


def repeats(text: str) -> int:
    """How many runs of three words are a second or later occurrence: small models fall into loops."""
    words = re.findall(r"[\w']+", text.lower())
    runs = Counter(zip(words, words[1:], words[2:], strict=False))
    return sum(count - 1 for count in runs.values())


def good(text: str) -> bool:
    """Long enough, without loops, and fit for everybody's eyes."""
    return len(text.split()) >= MIN_WORDS and repeats(text) <= MAX_REPEATS and not UNSUITABLE.search(text)


def answers(model: sl.LiveModel, style: str, prompts: list[str], seed: int) -> list[str]:
    """One answer a prompt: the first good one of `TRIES`, else the least bad one."""
    tries: list[list[str]] = [[] for _ in prompts]
    for attempt in range(TRIES):
        todo = [i for i, texts in enumerate(tries) if not (texts and good(texts[-1]))]
        if todo:
            written = model.generate([chat(style, prompts[i]) for i in todo], seed=seed + attempt, **SAMPLING)
            for i, text in zip(todo, written, strict=True):
                tries[i].append(whole_sentences(text))
    def faults(text: str) -> tuple[bool, bool, bool, int]:
        short = len(text.split()) < MIN_WORDS
        return not good(text), bool(UNSUITABLE.search(text)), short, repeats(text)

    return [min(texts, key=faults) for texts in tries]


def write(model: sl.LiveModel, style: str, prompts: list[str], out: Path) -> None:
    """Write the answers; the file grows by a chunk at a time, whole at every moment."""
    rows = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    for at in range(len(rows), len(prompts), CHUNK):
        asked = prompts[at : at + CHUNK]
        texts = answers(model, style, asked, seed=SEED + at * TRIES)
        for i, (prompt, text) in enumerate(zip(asked, texts, strict=True), start=at):
            row = {"id": i, "system": style, "prompt": prompt, "answer": text}
            rows.append(json.dumps(row, ensure_ascii=False))
        with write_whole(out) as temporary:
            temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{style}: {at + len(asked)} of {len(prompts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=MODEL, help="name or folder of the model")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--limit", type=int, default=None, help="answer only the first so many prompts")
    args = parser.parse_args()
    prompts = (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()[: args.limit]
    model = sl.load_model(args.model)
    for style in STYLES:
        write(model, style, prompts, args.out / f"{style}.jsonl")


if __name__ == "__main__":
    main()
