"""The model card of an exported prompt: what it is, what it was learned from, what it may tell, how to use it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from dpfpl_client.models.backbone import Backbone
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.use.exporting.adapter import Adapter
from dpfpl_client.use.prompt import SitePrompt
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import epsilon, json_epsilon
from dpfpl_common.privacy_plan import ADVERSARIES, UNIT_NAMES, planned_events

__all__ = [
    "BaseModel",
    "Facts",
    "classes_usage",
    "generative_usage",
    "model_card",
    "picture_code",
    "vectors_usage",
]


# How an exported prompt is used with plain transformers, family by family: the code of its model card.


PICTURE = """\
def opened(path):  # as the site reads its pictures: upright, {bits} of 16 bits scaled, on white where transparent
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.clip(np.asarray(image) / {white}, 0, 1) * 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")
"""

WITH_ADAPTER = """\
```python
import json, torch
import numpy as np
from PIL import Image, ImageOps
from peft import AutoPeftModel
from transformers import AutoImageProcessor, AutoTokenizer

{picture}
model = AutoPeftModel.from_pretrained(".", dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained("tokenizer")
processor = AutoImageProcessor.from_pretrained({base}, backend="pil")
prompts = json.load(open("prompt.json", encoding="utf-8"))["class_prompts"]
text = tokenizer(list(prompts.values()), padding=True, return_tensors="pt")
pixels = processor(images=opened("photo.png"), return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    logits = model(pixel_values=pixels, **text).logits_per_image
print(dict(zip(prompts, logits.softmax(-1)[0].tolist())))
```

It needs `torch`, `transformers`, `peft`, `numpy` and `pillow`. `opened` reads a picture
as `dpfpl-client predict` does. The adapter is PEFT's `TrainableTokens`: the context vectors take the rows of {count}
rare vocabulary entries, which the folder's tokenizer spells `<|context_1|>` and so on. Use this tokenizer with the
adapter, and the base model's own without it.

Merged into the base model, the prompt works in the stock pipeline. Continue with:

```python
from transformers import pipeline

template = "".join(f"<|context_{{number}}|>" for number in range(1, {count} + 1)) + "{{}}."
classify = pipeline(
    "zero-shot-image-classification", model=model.merge_and_unload(), tokenizer=tokenizer, image_processor=processor
)
print(classify(opened("photo.png"), candidate_labels=list(prompts), hypothesis_template=template))
```
"""

WITHOUT_ADAPTER = """\
PEFT cannot express this prompt: {reason}. The classes' merged text features do the same for these classes (it needs
`torch`, `transformers`, `safetensors`, `numpy` and `pillow`):

```python
import json, torch
import numpy as np
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

{picture}
base = {base}
about = json.load(open("prompt.json", encoding="utf-8"))
text = load_file("text_features.safetensors")["text_features"]
model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
processor = AutoImageProcessor.from_pretrained(base, backend="pil")
inputs = processor(images=opened("photo.png"), return_tensors="pt")
with torch.inference_mode():
    image = model.get_image_features(**inputs)
    image = getattr(image, "pooler_output", image)
    logits = about["logit_scale"] * torch.nn.functional.normalize(image, dim=-1) @ text.T
print(dict(zip(about["experiment"]["classes"] + about["added"], {head}[0].tolist())))
```
"""

WITH_VECTORS = """\
What the site classifies with: one vector for each class, made of all sites' noised class sums where their images voted
for them and of the plain text otherwise, a bias, and `mix`, the log of how often the site expects each class. It needs
`torch`, `transformers`, `safetensors`, `numpy` and `pillow`.

```python
import json, torch
import numpy as np
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

{picture}
base = {base}
head = load_file("class_vectors.safetensors")
model, processor = AutoModel.from_pretrained(base).eval(), AutoImageProcessor.from_pretrained(base, backend="pil")
inputs = processor(images=opened("photo.png"), return_tensors="pt")
with torch.inference_mode():
    image = model.get_image_features(**inputs)
    image = torch.nn.functional.normalize(getattr(image, "pooler_output", image), dim=-1).double()
logits = head["scale"] * image @ head["vectors"].T + head["bias"] + head["mix"]
about = json.load(open("prompt.json", encoding="utf-8"))
print(dict(zip(about["experiment"]["classes"] + about["added"], logits.softmax(-1)[0].tolist())))
```

Without `mix` every class is expected equally often. `mix` is `log(s * C * shares + 1 - s)` for the experiment's C
classes (0 is the share of a name that was added), where `shares` are read off the site's noised class sums and s, the
share of images that are expected from them, is `usual_mix` in prompt.json; it is 0 where no share stands out of the
noise. The learned prompt, alone:

"""

SOFTMAX, SIGMOID = "logits.softmax(-1)", "torch.sigmoid(logits + about['logit_bias'])"

GENERATIVE = """\
PEFT cannot express this prompt: {reason}. Plain transformers can, with the embeddings put together by hand (it needs
`torch`, `transformers`, `safetensors`, `numpy` and `pillow`):

```python
import json, torch
import numpy as np
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

{picture}
base, question = {base}, {question}
turn = json.load(open("prompt.json", encoding="utf-8"))["turn"]
context = load_file("prompt.safetensors")["context"]
options = {{"dtype": torch.float32, "attn_implementation": turn["attention"]}}
model = AutoModelForImageTextToText.from_pretrained(base, **options).eval()
tokenizer, processor = AutoTokenizer.from_pretrained(base), AutoImageProcessor.from_pretrained(base, backend="pil")
image = opened("photo.png")
if turn["square"]:
    image = image.resize((turn["square"], turn["square"]), Image.Resampling.BICUBIC)
inputs = processor(images=[[image] if turn["nested"] else image], return_tensors="pt", **turn["processor_options"])
taken = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes")
inputs = {{name: inputs[name] for name in taken if name in inputs}}

def tokens(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]

def behind(question):  # its ids, as they are where the turn's beginning stands in front
    text = turn["lead"] + question + turn["tail"]
    before, whole = tokens(turn["before"]), tokens(turn["before"] + text)
    return whole[len(before) :] if whole[: len(before)] == before else tokens(text)

def control(found):
    return [token for token in found if token in turn["control"]]

asked = behind(question)
if control(asked) != control(behind("a")):
    raise SystemExit("The question spells a token that controls the model; ask in other words.")
begin, answer = len(turn["head"]), []
with torch.inference_mode():
    for _ in range({most}):
        ids = torch.tensor([turn["head"] + turn["head"][:1] * len(context) + asked + answer])
        embeddings = model.get_input_embeddings()(ids)
        embeddings[0, begin : begin + len(context)] = context
        if turn["rope_index"]:
            kinds = (ids == model.config.image_token_id).int()
            inputs["position_ids"] = model.model.get_rope_index(ids, kinds, inputs["image_grid_thw"])[0]
        if turn["sees_ahead"]:  # who sees ahead: the picture's tokens each other, or all before the answer each other
            said = torch.arange(ids.shape[1]) >= ids.shape[1] - len(answer)
            ahead = ids[0] == model.config.image_token_id if turn["sees_ahead"] == "picture" else said
            inputs["token_type_ids"] = ahead.long()[None]
        word = int(model(inputs_embeds=embeddings, use_cache=False, **inputs).logits[0, -1].argmax())
        if word in turn["ends"]:
            break
        answer.append(word)
print(tokenizer.decode(answer, skip_special_tokens=True).strip())
```
"""


def picture_code(bits: int) -> str:
    """The function ``opened`` for a site whose files of 16 bits use so many, where they do not say it themselves."""
    return PICTURE.format(bits=bits, white=2**bits - 1)


def classes_usage(backbone: DualEncoder, adapter: Adapter | None, base_model: str, reason: str, bits: int = 16) -> str:
    """For a model that compares images with classes; without an adapter ``reason`` says why there is none."""
    base = json.dumps(base_model)
    if adapter:
        return WITH_ADAPTER.format(picture=picture_code(bits), base=base, count=len(adapter.context))
    head = SOFTMAX if backbone.logit_bias is None else SIGMOID
    return WITHOUT_ADAPTER.format(picture=picture_code(bits), base=base, reason=reason, head=head)


def vectors_usage(base_model: str, bits: int = 16) -> str:
    """For class vectors."""
    return WITH_VECTORS.format(picture=picture_code(bits), base=json.dumps(base_model))


def generative_usage(experiment: Experiment, base_model: str, reason: str, bits: int = 16) -> str:
    """For a model that answers questions."""
    task = experiment.task
    question = task.question or ("" if task.kind == "caption" else "What is in the picture?")
    return GENERATIVE.format(
        picture=picture_code(bits),
        base=json.dumps(base_model),
        question=json.dumps(question, ensure_ascii=False),
        reason=reason,
        most=experiment.task.max_answer_tokens,
    )


USED = {
    "both_local": "what the site classifies with: class vectors",
    "text_local": "what the site classifies with: plain text, with the usual mix",
    "both_neighbour": "what the site classifies with: class vectors, on the other sites' classes",
    "text_neighbour": "what the site classifies with: plain text, with the usual mix, on the other sites' classes",
}
"""Accuracies of what class_vectors.safetensors holds, after the last round."""


METRICS = {
    **USED,
    "zero_shot_local": "plain text prompt, nothing learned (floor)",
    "global_local": "shared prompt alone (floor)",
    "personal_local": "this prompt, one round before its last",
    "zero_shot_neighbour": "plain text prompt, on the other sites' classes (floor)",
    "global_neighbour": "shared prompt alone, on the other sites' classes (floor)",
    "personal_neighbour": "this prompt, one round before its last, on the other sites' classes",
}


PLACES = {
    "classify": "before the class name",
    "vqa": "between picture and question",
    "caption": "behind the picture, before the caption",
}

SOURCES = {
    "classify": "Labelled images",
    "vqa": "Questions about images, with their answers,",
    "caption": "Images with captions",
}

USES = {
    "classify": """\
To classify images of the classes above, of the kind that the site collects, with the base model named above. It was
tested, if at all, on that site's own test images only. It answers with one of its classes for every image, also for one
that belongs to none. A probability is the model's own confidence and was not calibrated.""",
    "vqa": """\
To answer questions of the kind that the site asks, about images of the kind that it collects, with the base model named
above. It was tested, if at all, on that site's own test questions only. It answers every question, also one that the
image does not answer.""",
    "caption": """\
To write captions as the site writes them, for images of the kind that it collects, with the base model named above. It
was tested, if at all, on that site's own test captions only, by the overlap of words. It has something to say about
every image, right or not.""",
}


@dataclass(frozen=True)
class BaseModel:
    """What the model is called where the prompt is used, and who says so: ``ours`` comes along in a folder."""

    name: str
    said_by: Literal["ours", "experiment", "site", "nobody"]


@dataclass(frozen=True)
class Facts:
    """What the prompt itself does not know.

    Attributes:
        site: the site's name.
        charged_epsilon: what the site's ledger charged for the experiment, at ``charged_delta``; None without a ledger.
        metrics: accuracies that the site's policy let out with the last round.
        scores: the noised ones, as ``results.released_scores`` gives them.
        seeded: whether the noise came from a seed.
        model: the hub id of the model that the site has loaded; empty where it is none from a hub.
        bits: the site's setting for files of 16 bits.
        licence: of the prompt, as model hubs write it.
    """

    site: str
    charged_epsilon: float | str | None = None
    charged_delta: float = 1e-5
    metrics: Mapping[str, float] = field(default_factory=dict)
    scores: Sequence[Mapping[str, Any]] = ()
    seeded: bool = False
    model: str = ""
    bits: int = 16
    licence: str = "unknown"


def model_card(prompt: SitePrompt, backbone: Backbone, facts: Facts, base_model: BaseModel, usage: str) -> str:
    """README.md of the exported folder, in Markdown with the hub's front matter; ``usage`` says how to use it."""
    experiment = prompt.experiment
    return f"""\
---
{_front_matter(prompt, backbone, facts, base_model, usage)}
---
# Prompt of {facts.site} from the experiment {experiment.name}

{experiment.prompt.num_context} learned vectors that stand {PLACES[experiment.task.kind]} in the input of a frozen
{backbone.family} model. They were learned by the method {experiment.prompt.method} in a federation of
{len(experiment.sites)} sites over {prompt.round} rounds; the images never left their sites.
Version `{prompt.version}`, learned {prompt.learned}{"" if prompt.finished else ", before the experiment ended"}.

## Base model

{_base(base_model)} Its fingerprint (sha256 over weights, configuration and tokenizer, as `dpfpl-client check` prints
it) is `{backbone.fingerprint}`.
{_precision(backbone)}

## Use

Run the code in this folder; from a hub, `hf download REPOSITORY --local-dir FOLDER` makes one.

{usage}
## What it was learned from

{_sources(prompt, facts)} How many images a site has is not stated: counts are private.

## Accuracy

{_accuracy(facts, experiment.task.kind, vectors=prompt.choice is not None or prompt.exported is not None)}
## What it may tell about one training example

{_privacy(prompt, facts)}
## Intended use

{USES[experiment.task.kind]} Before decisions about people,
test it on your own data. Everybody who has this folder is a prompt recipient in the table above: pass it on only as far
as the site agreed.
"""


def _front_matter(prompt: SitePrompt, backbone: Backbone, facts: Facts, base_model: BaseModel, usage: str) -> str:
    """What model hubs read, as YAML. Of accuracies only noised scores: what was published is not taken back."""
    task = "zero-shot-image-classification" if isinstance(backbone, DualEncoder) else "image-text-to-text"
    name = f"{prompt.experiment.name} of {facts.site}"
    scores = [
        EvalResult(
            task_type=task,
            dataset_type="private",
            dataset_name=f"held-back examples of {facts.site}",
            metric_type="accuracy",
            metric_name="{}, noised, 95 % interval {:.3f} to {:.3f}".format(row["candidate"], *row["interval"]),
            metric_value=round(row["value"], 4),
        )
        for row in facts.scores
        if row["value"] is not None
    ]
    data = ModelCardData(
        license=facts.licence,
        library_name="peft" if "PeftModel" in usage else "transformers",
        pipeline_tag=task,
        base_model=base_model.name if base_model.said_by in ("experiment", "site") else None,
        tags=[backbone.family, "prompt-learning", "federated-learning"],
        model_name=name if scores else None,
        eval_results=scores or None,
    )
    return str(data.to_yaml()).strip()


def _sources(prompt: SitePrompt, facts: Facts) -> str:
    experiment = prompt.experiment
    what = SOURCES[experiment.task.kind]
    classes = f" Classes:\n{_listed(experiment.classes)}." if experiment.classes else ""
    added = f"\nAdded by name alone, learned from no image: {_listed(prompt.added)}." if prompt.added else ""
    return f"{what} of the site {facts.site}, and what all sites shared: {_listed(experiment.sites)}.{classes}{added}"


def _precision(backbone: Backbone) -> str:
    stored = backbone.stored_precision
    if stored == "float32":
        return "Its weights are stored in float32; the code below computes in float32."
    return (
        f"Its weights are stored in {stored}; the code below computes in float32, as transformers only does when\n"
        "asked. In less it gives slightly other numbers."
    )


def _base(base_model: BaseModel) -> str:
    return {
        "ours": "The small model that ships with DP-FPL, for tests and demonstrations; it is in the folder "
        "`base_model`.",
        "experiment": f"`{base_model.name}`, as the experiment names it.",
        "site": f"`{base_model.name}`, as the site calls it; the experiment names none.",
        "nobody": f"The experiment names none: put the model with this fingerprint in the place of "
        f"`{base_model.name}` below, and in adapter_config.json if there is one.",
    }[base_model.said_by]


def _accuracy(facts: Facts, task: str, *, vectors: bool) -> str:
    """Exact accuracies, if what the site classifies with is among them, else noised ones, which always count it.

    Args:
        facts: with the accuracies that may leave.
        task: the experiment's kind.
        vectors: whether the site classifies with class vectors.
    """
    known, measured = [(METRICS[name], facts.metrics[name]) for name in METRICS if name in facts.metrics], ""
    if facts.scores and (not known or (vectors and not USED.keys() & facts.metrics.keys())):
        rows = "\n".join(
            f"| {row['candidate']} | {'–' if row['value'] is None else format(100 * row['value'], '.1f') + ' %'} | "
            f"{100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f} % |"
            for row in facts.scores
        )
        return (
            "On the site's held-back examples, from noised counts of right answers, which the epsilons below cover.\n"
            f"With 95 % intervals for the noise:\n\n| | right | interval |\n|---|---|---|\n{rows}\n"
        )
    if not known:
        return "This site released no accuracy of its own, or its policy lets none out, so none is stated.\n"
    if vectors:
        measured = "\nNo accuracy of what the site classifies with may leave, so none is stated.\n"
    if USED.keys() & facts.metrics.keys():
        measured = (
            "\nWhat the site classifies with was measured after the last round, with the site's exact shares of the\n"
            "classes; this folder has the shares that the noised class sums show.\n"
        )
    rows = "\n".join(f"| {what} | {100 * value:.1f} % |" for what, value in known)
    return (
        "On the site's test images, as its policy lets it out (it may be rounded to steps of five points). A site "
        "measures when a round begins, so the figures of prompts are those of the prompt one round of training before "
        f"this one:\n\n| | {'word overlap (F1)' if task == 'caption' else 'accuracy'} |\n|---|---|\n{rows}\n{measured}"
    )


def _privacy(prompt: SitePrompt, facts: Facts) -> str:
    experiment = prompt.experiment
    delta = experiment.privacy.target_delta
    rows = "\n".join(
        f"| {ADVERSARIES[event.adversary]} | {_shown(json_epsilon(epsilon([event], delta)))} | {delta:g} |"
        for event in planned_events(experiment, prompt.round * experiment.rounds.local_steps)
    )
    charged = (
        f"\nThe site's ledger was charged {_shown(facts.charged_epsilon)} for this experiment at delta "
        f"{facts.charged_delta:g}; rounds that a crash interrupted are paid twice.\n"
        if facts.charged_epsilon is not None
        else ""
    )
    seeded = (
        "\n**The noise came from a seed: this was a simulation with public images, and nothing is protected.**\n"
        if facts.seeded
        else ""
    )
    return (
        f"Unit: {UNIT_NAMES[experiment.privacy.unit]}. Mechanism {experiment.privacy.mechanism}, trust "
        f"{experiment.privacy.trust}. The accountant's epsilons, smaller is stronger:\n\n"
        f"| against | epsilon | delta |\n|---|---|---|\n{rows}\n{charged}{seeded}\n"
        "Held-back images have no part in the prompt. Noised counts of right answers on them are held to the same\n"
        "epsilons; none covers exact accuracies, which leave sites on public data alone.\n"
    )


def _shown(value: float | str | None) -> str:
    """An epsilon, rounded up so that it never claims more than was computed."""
    return f"{-(-value * 1000 // 1) / 1000:.3f}" if isinstance(value, float) else str(value)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_plain(name) for name in names)


def _plain(name: str) -> str:
    """A class name as Markdown shows it."""
    return "".join(f"\\{char}" if char in r"\`*_{}[]<>()#|!" else char for char in name)
