"""Sends a video to clients over TCP, HTTP or RTSP, in threads: what cameras do."""

import io
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress

import av
import numpy as np
from PIL import Image

GOP = 10
BOUNDARY = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: "


def frame_of(number, size_hw=(48, 64)):
    """A grey frame that shows its number."""
    return np.full((*size_hw, 3), 4 * (number % 60), np.uint8)


def number_of(image):
    """The number that a frame shows, from 0 to 59."""
    return round(float(image.mean()) / 4)


class Growing(io.RawIOBase):
    """Collects what a muxer writes, and cannot seek."""

    def __init__(self):
        self.written = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.written += data
        return len(data)

    def take(self):
        taken = bytes(self.written)
        self.written.clear()
        return taken


def mpegts(count, size_hw=(48, 64), fps=30):
    """The bytes of each frame of an H.264 video in MPEG-TS, with a keyframe every ``GOP`` frames."""
    file = Growing()
    chunks = []
    with av.open(file, "w", format="mpegts") as container:
        container.flags |= av.container.Flags.flush_packets.value
        stream = container.add_stream("libx264", fps, options={"g": str(GOP), "tune": "zerolatency", "crf": "1"})
        stream.height, stream.width = size_hw
        stream.pix_fmt = "yuv444p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(frame_of(number, size_hw))
            frame.pts = number
            container.mux(stream.encode(frame))
            chunks.append(file.take())
    return chunks


def mjpeg(count):
    """Frames as network cameras send them to browsers."""
    chunks = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(frame_of(number)).save(file, "JPEG", quality=95)
        chunks.append(BOUNDARY + f"{len(file.getvalue())}\r\n\r\n".encode() + file.getvalue() + b"\r\n")
    return chunks


def send_http(client, chunks, kind):
    """Answer a request, with chunks of unknown number."""
    client.recv(4096)
    client.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    for chunk in chunks:
        client.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
    client.sendall(b"0\r\n\r\n")


def send_rtsp(client, chunks):
    """A session of RTSP: MPEG-TS in RTP packets, within the connection."""
    description = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
    request = ""
    while not request.startswith("PLAY"):
        request = client.recv(4096).decode()
        headers = {"CSeq": re.search(r"CSeq: (\d+)", request)[1], "Session": "1"}
        body = ""
        if request.startswith("DESCRIBE"):
            body, headers["Content-Type"] = description, "application/sdp"
        elif request.startswith("SETUP"):
            headers["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
        elif request.startswith("OPTIONS"):
            headers["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"
        headers["Content-Length"] = str(len(body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        client.sendall(f"RTSP/1.0 200 OK\r\n{lines}\r\n{body}".encode())
    sequence = 0
    for chunk in chunks:
        for start in range(0, len(chunk), 7 * 188):
            payload = chunk[start : start + 7 * 188]
            rtp = bytes([0x80, 33]) + sequence.to_bytes(2, "big") + bytes(8) + payload
            client.sendall(b"$\0" + len(rtp).to_bytes(2, "big") + rtp)
            sequence = (sequence + 1) % 65536


class Server:
    """Serves one client after the other. ``scripts`` are called with the socket, one for each connection in turn."""

    def __init__(self, *scripts):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.clients = []
        self.sent = -1
        """Number of the last frame sent."""
        self.closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(scripts,))
        self._thread.start()

    def _serve(self, scripts):
        for script in scripts:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            self.clients.append(client)
            try:
                with client:
                    script(client)
            except OSError:  # the client is gone
                continue
        self.socket.close()

    def paced(self, chunks, fps, burst=0):
        """The chunks, at a rate, after a burst as cameras send it when a client connects."""
        start = time.monotonic()
        for number, chunk in enumerate(chunks):
            due = start + max(0, number - burst) / fps
            if self.closed.wait(max(0.0, due - time.monotonic())):
                return
            yield chunk
            self.sent = number

    def close(self):
        self.closed.set()
        for one in (self.socket, *self.clients):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join()


@contextmanager
def serving(*scripts):
    """A server whose scripts are called with it and the socket."""
    server = None

    def bound(script):
        return lambda client: script(server, client)

    server = Server(*map(bound, scripts))
    try:
        yield server
    finally:
        server.close()
