/**
 * A network link to a server of this machine: a program that passes bytes on, counts them, and can
 * delay them and limit their rate. (tc-netem(8) would do the same, but many kernels lack it.)
 */
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

export interface Shape {
  /** Milliseconds in each direction: half of a round trip. */
  delay: number;
  /** Bytes per second in each direction, for all connections together. */
  rate: number;
}

/** Bytes that are under way in one direction of a connection, after which its sender must wait. */
const WINDOW = 8 * 2 ** 20;

export class Link {
  #moved = 0;
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;

  private constructor(port: number, shape: Shape | null) {
    // All connections share the line in each direction.
    const [there, back] = [new Line(shape), new Line(shape)];
    this.#server = createServer((near) => {
      const far = connect(port, '127.0.0.1');
      for (const [from, into, line] of [
        [near, far, there],
        [far, near, back],
      ] as const) {
        this.#sockets.add(from);
        from.on('data', (bytes: Buffer) => (this.#moved += bytes.length));
        from.on('error', () => into.destroy());
        line.carry(from, into);
      }
    });
  }

  /** `to`: HOST:PORT of a server on this machine. */
  static async open(to: string, shape: Shape | null): Promise<Link> {
    const link = new Link(Number(to.split(':')[1]), shape);
    await new Promise<void>((resolve) => link.#server.listen(0, '127.0.0.1', resolve));
    return link;
  }

  get host(): string {
    return `localhost:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Bytes so far, in both directions together. */
  get moved(): number {
    return this.#moved;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** One direction of the link. */
class Line {
  readonly #shape: Shape | null;
  /** When the line has sent all that it was given, in milliseconds. */
  #freeAt = 0;

  constructor(shape: Shape | null) {
    this.#shape = shape;
  }

  carry(from: Socket, into: Socket): void {
    if (this.#shape === null) {
      from.on('close', () => into.destroy()).pipe(into);
      return;
    }
    const { delay, rate } = this.#shape;
    let underWay = 0;
    // One after another: two timers may fire in another order than their times.
    const arriving: { at: number; arrive: () => void }[] = [];
    const pump = () => {
      while (arriving[0] && arriving[0].at <= performance.now()) arriving.shift()?.arrive();
      if (arriving[0]) setTimeout(pump, arriving[0].at - performance.now());
    };
    const later = (bytes: number, arrive: () => void) => {
      this.#freeAt = Math.max(performance.now(), this.#freeAt) + (bytes / rate) * 1000;
      arriving.push({ at: this.#freeAt + delay, arrive });
      if (arriving.length === 1) setTimeout(pump, this.#freeAt + delay - performance.now());
    };
    from.on('data', (bytes: Buffer) => {
      underWay += bytes.length;
      if (underWay > WINDOW) from.pause();
      later(bytes.length, () => {
        underWay -= bytes.length;
        if (underWay <= WINDOW) from.resume();
        if (!into.destroyed) into.write(bytes);
      });
    });
    from.on('end', () => {
      later(0, () => into.end());
    });
    from.on('close', () => {
      later(0, () => into.destroy());
    });
  }
}
