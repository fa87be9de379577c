"""From a folder of images to a model that needs no cnnspec: train, predict, export, and load the exported files.

The exported Python file imports only torch. The last step runs it in a process in which cnnspec cannot be imported.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import cnnspec
from cnnspec.inference import export_network
from cnnspec.recipe import Folder, Setting
from cnnspec.training import TrainOptions, train

SPEC = """
network textures
input 3x32x32
classes 3
stem  conv 3x3 16 stride=2 | bn | relu
stage resnet_block x2 c=32 subsample
head  global_avgpool | flatten | linear classes
train { optimizer adamw lr=0.01; epochs 2; batch 16; normalize half }
"""
WITHOUT_CNNSPEC = """
import sys
sys.modules["cnnspec"] = None
import numpy as np, torch
from PIL import Image
from textures import Textures

network = Textures()
network.load_state_dict(torch.load("textures.pt", weights_only=True))
pixels = torch.from_numpy(np.array(Image.open(sys.argv[1]))).permute(2, 0, 1)
with torch.no_grad():
    print(*network.eval()((pixels[None] / 255 - 0.5) / 0.5).softmax(1)[0].tolist())
"""

random = np.random.default_rng(0)
y, x = np.mgrid[0:32, 0:32]
for name, wave in {"checks": (x // 4 + y // 4) % 2, "rows": y // 4 % 2, "columns": x // 4 % 2}.items():
    for number in range(60):
        place = Path("textures", "test" if number < 20 else "train", name, f"{number}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = wave[..., None] * random.integers(60, 200, 3) + random.integers(0, 50, (32, 32, 3))
        Image.fromarray(np.roll(pixels, random.integers(0, 8, 2), (0, 1)).astype(np.uint8)).save(place)

data = Setting.of(Folder(path="textures", val=0))
result = train(cnnspec.loads(SPEC), TrainOptions(data=data, out=Path("texture_runs"), plots=False))
image = Path("textures/test/rows/0.png")
(predicted,) = cnnspec.load_run(result.folder).predict([image])
print("cnnspec:", dict(predicted.top()))
done = export_network(result.folder, "textures.py", "torch")
printed = subprocess.run([sys.executable, "-Bc", WITHOUT_CNNSPEC, image], capture_output=True, text=True, check=True)
probabilities = dict(zip(result.values["classes"], map(float, printed.stdout.split()), strict=True))
print(done.files, "without cnnspec:", probabilities)
assert all(abs(probabilities[name] - value) < 1e-6 for name, value in predicted.top())
