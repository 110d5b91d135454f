/** A registry that is away, slow, refuses, sends wrong bytes or restarts, as a test wants it. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';

import type { ExecutionContext } from 'ava';

import type { Random } from '../helpers/random.js';
import { layoutServer, sendRange } from './servers.js';

export type Mood = 'well' | 'away' | 'slow' | 'refuses' | 'corrupts' | 'restarts';

const SLOW_MS = 100;

/** It serves a layout, and is well at first. */
export class MoodyRegistry {
  #mood: Mood = 'well';
  #port = 0;
  readonly #server: Server;

  private constructor(
    directory: string,
    private readonly random: Random,
  ) {
    this.#server = createServer(
      layoutServer(directory, ({ kind, request, response, bytes }) => {
        if (kind !== 'blob') return false;
        switch (this.#mood) {
          case 'well':
          case 'restarts':
            return false;
          case 'away':
            response.destroy();
            return true;
          case 'slow':
            setTimeout(() => {
              sendRange(request, response, bytes);
            }, SLOW_MS);
            return true;
          case 'refuses':
            response.writeHead(503).end();
            return true;
          case 'corrupts': {
            const wrong = Buffer.from(bytes);
            for (let at = random.below(20); at < wrong.length; at += 20) wrong[at]! ^= 1;
            sendRange(request, response, wrong);
            return true;
          }
        }
      }),
    );
  }

  static async start(
    t: ExecutionContext<unknown>,
    directory: string,
    random: Random,
  ): Promise<MoodyRegistry> {
    const registry = new MoodyRegistry(directory, random);
    t.teardown(() => registry.#stop());
    await registry.#listen();
    return registry;
  }

  get host(): string {
    return `localhost:${this.#port}`;
  }

  get mood(): Mood {
    return this.#mood;
  }

  /** Another mood; more often than not it is well. */
  async change(): Promise<void> {
    await this.be(
      this.random.pick(['well', 'well', 'away', 'slow', 'refuses', 'corrupts', 'restarts']),
    );
  }

  async be(mood: Mood): Promise<void> {
    if (this.#mood === 'restarts' && mood !== 'restarts') await this.#listen();
    if (mood === 'restarts') this.#stop();
    this.#mood = mood;
  }

  #listen(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.listen(this.#port, '127.0.0.1', () => {
        this.#port = (this.#server.address() as AddressInfo).port;
        resolve();
      });
    });
  }

  #stop(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}
