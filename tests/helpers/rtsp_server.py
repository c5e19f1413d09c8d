"""A camera on this machine: an RTSP server that plays numbered frames once and then hangs up."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
from videos import numbered

SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n"
    "a=control:track1\r\n"
)


def rtp_packets(frames: int) -> list[bytes]:
    """The RTP packets of numbered frames in H.264, 10 a second, as FFmpeg sends them."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(0.5)
    address = f"rtp://127.0.0.1:{receiver.getsockname()[1]}"
    with av.open(address, "w", format="rtp") as container:
        options = {"tune": "zerolatency", "x264-params": "keyint=5:repeat-headers=1"}
        stream: Any = container.add_stream("libx264", rate=Fraction(10), options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    packets = []
    with receiver:
        try:
            while True:
                packets.append(receiver.recv(2**16))
        except TimeoutError:
            return packets


@contextmanager
def camera(frames: int) -> Iterator[str]:
    """The address of a camera that shows so many frames to one client."""
    packets = rtp_packets(frames)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_serve, args=(listener, packets), daemon=True)
    thread.start()
    try:
        yield f"rtsp://me:secret@127.0.0.1:{listener.getsockname()[1]}/street"
    finally:
        listener.close()
        thread.join(5)


def _serve(listener: socket.socket, packets: list[bytes]) -> None:
    client, _ = listener.accept()
    with client:
        while request := _request(client):
            method, number = request.split(" ")[0], re.search(r"CSeq: (\d+)", request)[1]
            body = SDP if method == "DESCRIBE" else ""
            headers = {
                "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
                "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n",
                "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
                "PLAY": "Session: 1\r\n",
            }.get(method, "")
            client.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{headers}\r\n{body}".encode())
            if method == "PLAY":
                for packet in packets:
                    client.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                return


def _request(client: socket.socket) -> str:
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        received = client.recv(1)
        if not received:
            return ""
        text += received
    return text.decode()
