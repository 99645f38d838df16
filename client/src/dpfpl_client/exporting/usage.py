"""How an exported prompt is used with plain transformers, family by family: the code of its model card."""

import json

from dpfpl_client.exporting.adapter import Adapter
from dpfpl_client.learning.dual_encoder import DualEncoder
from dpfpl_common.experiment import Experiment

__all__ = ["classes_usage", "generative_usage"]

PICTURE = """\
def opened(path):  # as the site reads its pictures: upright, 16 bits scaled to 8, on white where transparent
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8))
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
from peft import PeftModel
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

{picture}
base = {base}
model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), ".").eval()
tokenizer, processor = AutoTokenizer.from_pretrained("."), AutoImageProcessor.from_pretrained(base, backend="pil")
prompts = json.load(open("prompt.json", encoding="utf-8"))["class_prompts"]
text = tokenizer(list(prompts.values()), padding=True, return_tensors="pt")
pixels = processor(images=opened("photo.png"), return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    logits = model(pixel_values=pixels, **text).logits_per_image
print(dict(zip(prompts, logits.softmax(-1)[0].tolist())))
```

Run it in this folder; `transformers` and `peft` are all it needs. `opened` reads a picture as `dpfpl-client predict`
does. The adapter is PEFT's `TrainableTokens`: the context vectors take the rows of {count} rare vocabulary entries,
which this folder's tokenizer spells `<|context_1|>` and so on. Use this tokenizer with the adapter, and the base
model's own without it.
"""

WITHOUT_ADAPTER = """\
PEFT cannot express this prompt: {reason}. The classes' merged text features do the same for these classes:

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
model, processor = AutoModel.from_pretrained(base).eval(), AutoImageProcessor.from_pretrained(base, backend="pil")
inputs = processor(images=opened("photo.png"), return_tensors="pt")
with torch.inference_mode():
    image = model.get_image_features(**inputs)
    image = getattr(image, "pooler_output", image)
    logits = about["logit_scale"] * torch.nn.functional.normalize(image, dim=-1) @ text.T
print(dict(zip(about["experiment"]["classes"], {head}[0].tolist())))
```
"""

SOFTMAX, SIGMOID = "logits.softmax(-1)", "torch.sigmoid(logits + about['logit_bias'])"

GENERATIVE = """\
PEFT cannot express this prompt: {reason}. Plain transformers can, with the embeddings put together by hand:

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


def classes_usage(backbone: DualEncoder, adapter: Adapter | None, base_model: str, reason: str) -> str:
    """For a model that compares images with classes; without an adapter ``reason`` says why there is none."""
    base = json.dumps(base_model)
    if adapter:
        return WITH_ADAPTER.format(picture=PICTURE, base=base, count=len(adapter.context))
    head = SOFTMAX if backbone.logit_bias is None else SIGMOID
    return WITHOUT_ADAPTER.format(picture=PICTURE, base=base, reason=reason, head=head)


def generative_usage(experiment: Experiment, base_model: str, reason: str) -> str:
    """For a model that answers questions."""
    task = experiment.task
    question = task.question or ("" if task.kind == "caption" else "What is in the picture?")
    return GENERATIVE.format(
        picture=PICTURE,
        base=json.dumps(base_model),
        question=json.dumps(question, ensure_ascii=False),
        reason=reason,
        most=experiment.task.max_answer_tokens,
    )
