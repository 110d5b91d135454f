/**
 * The network between hosts of the lab: a switch whose ports are sockets of QEMU's `stream` network
 * back end (each frame has its length before it, 4 bytes). A port can be cut.
 */
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';

/** Bytes that wait for a port; beyond that, frames are dropped. */
const QUEUE = 1 << 20;

export class Switch {
  readonly #ports = new Map<number, Socket>();
  readonly #cut = new Set<number>();
  readonly #servers: Server[] = [];

  /** The machine that connects to this socket of the filesystem has the MAC address 52:54:0:0:0:N. */
  async listen(number: number, path: string): Promise<void> {
    const server = createServer((socket) => {
      this.#ports.set(number, socket);
      let received = Buffer.alloc(0);
      socket.on('data', (bytes) => {
        received = Buffer.concat([received, bytes]);
        while (received.length >= 4 && received.length >= 4 + received.readUInt32BE(0)) {
          const length = 4 + received.readUInt32BE(0);
          this.#pass(number, received.subarray(0, length));
          received = received.subarray(length);
        }
      });
      socket.on('error', () => undefined); // QEMU was killed
      socket.on('close', () => {
        if (this.#ports.get(number) === socket) this.#ports.delete(number);
      });
    });
    this.#servers.push(server);
    await once(server.listen(path), 'listening');
  }

  /** From now on nothing reaches the machine, and nothing comes from it. */
  cut(number: number): void {
    this.#cut.add(number);
  }

  join(number: number): void {
    this.#cut.delete(number);
  }

  close(): void {
    for (const server of this.#servers) server.close();
    for (const socket of this.#ports.values()) socket.destroy();
  }

  /** `frame` with its length. Bit 0 of its first byte: to all. */
  #pass(from: number, frame: Buffer): void {
    if (this.#cut.has(from)) return;
    const to = ((frame[4] ?? 1) & 1) === 1 ? null : frame[9];
    for (const [number, socket] of this.#ports) {
      if (number === from || this.#cut.has(number) || (to !== null && to !== number)) continue;
      if (socket.writableLength < QUEUE) socket.write(frame);
    }
  }
}
