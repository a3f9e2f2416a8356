"""X-AnyLabeling's own remote client, without a window: run by the Python that has x-anylabeling-cvhub.

Arguments: a folder for its settings, the address of the server, x,y of a click, and images, which are the frames of the
video. Prints the answers as JSON. The client writes the tracked shapes beside the images.
"""

import json
import os
import sys
from pathlib import Path

home, address, click, *images = sys.argv[1:]
os.environ.update(QT_QPA_PLATFORM="offscreen", HOME=home)

import anylabeling.config  # noqa: E402
from anylabeling.services.auto_labeling.remote_server import RemoteServer  # noqa: E402
from PyQt6.QtGui import QImage  # noqa: E402
from PyQt6.QtWidgets import QApplication, QWidget  # noqa: E402


class Window(QWidget):
    """What the client asks of the main window."""

    def __init__(self, config):
        super().__init__()
        self.image_list, self.output_dir, self._config = images, None, config


def shapes_of(result):
    return [[[point.x(), point.y()] for point in shape.points] for shape in result.shapes]


settings = Path(home) / ".xanylabelingrc"
settings.write_text(json.dumps({"remote_server_settings": {"server_url": address, "api_key": ""}}))
anylabeling.config.current_config_file = str(settings)
app, said = QApplication([]), []
config = {"type": "remote_server", "name": "remote", "provider": "", "display_name": "Remote-Server", "timeout": 180}
client = RemoteServer(config, said.append)
client._widget = Window(client._config)
answer = {"models": sorted(client.get_available_models())}
mark = {"type": "point", "label": 1, "data": [int(value) for value in click.split(",")]}
for model in ("masklet", "masklet-video"):
    client.set_model_id(model)
    client.set_auto_labeling_marks([mark])
    answer[model] = shapes_of(client.predict_shapes(QImage(images[0]), images[0]))
answer["mode"] = client.get_batch_processing_mode()
client.predict_shapes(QImage(images[0]), images[0], run_tracker=True)
answer["said"] = said
print("ANSWER", json.dumps(answer))
