/**
 * Pushes a snapshot, with the snapshots on which it stands, as an artifact (docs/registry.md). Each
 * layer is compressed into an unnamed file, and sent while the next one is compressed. What the
 * other side already has is not sent.
 */
import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import {
  compressed,
  type Image,
  type LongOptions,
  openUnnamed,
  PcowError,
} from '../engine/index.js';
import { ExportPlan, type Part } from '../stream/plan.js';
import { canonicalPieces, countCandidates, type PieceContent } from './canonical.js';
import {
  type Blob,
  blobOf,
  encodeConfig,
  encodeManifest,
  type ImageConfig,
  type ImageLayer,
  MOST_LAYERS,
} from './manifest.js';
import { ordered } from '../stream/ordered.js';
import { IndexBuilder, PIECE, type Piece, recordDigest } from './piece-index.js';
import { cancelled, once, type Store } from './store.js';

/** The level of zstd: measured by scripts/piece-sizes.ts. */
export const LEVEL = 3;
/** Pieces that are compressed at the same time. */
const WIDTH = 4;
/** Layers that are sent at the same time. */
const LAYERS_AT_ONCE = 3;
const CHUNK = 1 << 20;

/** The result of push(). */
export interface Pushed {
  /** The manifest's digest, which identifies this image for ever. */
  digest: string;
  /** The number of layers. */
  layers: number;
  /** Bytes of blobs that were sent. */
  sent: number;
  /** Bytes of blobs that were there already. */
  present: number;
}

/** The parts of a layer that are sent. */
interface EncodedLayer {
  layer: ImageLayer;
  index: Buffer;
  data: Spool | null;
}

/** `layer`: the id of the snapshot's layer. The image may be in use. */
export async function push(
  image: Image,
  layer: number,
  store: Store,
  long: LongOptions = {},
): Promise<Pushed> {
  const { signal } = long;
  const plan = await ExportPlan.make(image, layer);
  try {
    const { parts } = plan;
    if (parts.length > MOST_LAYERS) {
      throw new PcowError(
        'PCOW_LIMIT',
        `an image in a registry has at most ${MOST_LAYERS} snapshots, and this one has ${parts.length}`,
        {
          next: 'delete snapshots that are not needed, or push a snapshot of a flat copy (pcow convert)',
        },
      );
    }
    const pushed: Pushed = { digest: '', layers: parts.length, sent: 0, present: 0 };
    const sendings = new Map<string, Promise<void>>();
    // Layers with the same content share their blobs.
    const send = (blob: Blob, open: () => AsyncIterable<Uint8Array>) => {
      const sending = sendings.get(blob.digest) ?? sendOne(store, blob, open, pushed);
      sendings.set(blob.digest, sending);
      return sending;
    };
    const config: ImageConfig = { blockSize: image.info().blockSize, layers: [] };
    const progress = await progressOf(parts, long);
    const sendLayer = async ({ layer: sent, index, data }: EncodedLayer) => {
      try {
        await send(sent.index, () => once(index));
        if (sent.data !== null && data !== null) await send(sent.data, () => data.read(signal));
        return sent;
      } finally {
        await data?.close();
      }
    };
    for await (const sent of ordered(
      encodedLayers(parts, signal, progress),
      LAYERS_AT_ONCE,
      sendLayer,
    )) {
      config.layers.push(sent);
    }
    plan.checkBases();
    const bytes = encodeConfig(config);
    await send(blobOf(bytes), () => once(bytes));
    const manifest = encodeManifest(bytes, config);
    if (signal?.aborted) throw cancelled('the push', signal);
    await store.writeManifest(manifest);
    return { ...pushed, digest: blobOf(manifest).digest };
  } finally {
    await plan.close();
  }
}

async function sendOne(
  store: Store,
  blob: Blob,
  open: () => AsyncIterable<Uint8Array>,
  pushed: Pushed,
): Promise<void> {
  if (await store.hasBlob(blob)) {
    pushed.present += blob.size;
    return;
  }
  await store.writeBlob(blob, open);
  pushed.sent += blob.size;
}

async function progressOf(
  parts: readonly Part[],
  { signal, onProgress }: LongOptions,
): Promise<() => void> {
  if (onProgress === undefined) return () => undefined;
  let [done, total] = [0, 0];
  for (const part of parts) total += await countCandidates(part, signal);
  return () => {
    onProgress(++done * PIECE, total * PIECE);
  };
}

async function* encodedLayers(
  parts: readonly Part[],
  signal: AbortSignal | undefined,
  onPiece: () => void,
): AsyncGenerator<EncodedLayer> {
  for (const part of parts) yield encodeLayer(part, signal, onPiece);
}

async function encodeLayer(
  part: Part,
  signal: AbortSignal | undefined,
  onPiece: () => void,
): Promise<EncodedLayer> {
  const { layer, snapshot } = part;
  if (snapshot === null) throw new PcowError('PCOW_INVALID', 'only a snapshot can be pushed');
  const builder = new IndexBuilder();
  const spool = await Spool.make();
  try {
    let bytes = 0;
    for await (const { piece, frame, length } of ordered(
      canonicalPieces(part, signal, onPiece),
      WIDTH,
      encodePiece,
    )) {
      builder.add(piece);
      bytes += length;
      if (frame.length > 0) await spool.write(frame);
    }
    const index = builder.finish(layer.size);
    const data = spool.finish();
    const encoded: ImageLayer = {
      snapshot: {
        name: snapshot.name,
        identity: snapshot.identity,
        created: layer.created.toISOString(),
      },
      size: layer.size,
      bytes,
      index: blobOf(index),
      data,
    };
    if (data === null) await spool.close();
    return { layer: encoded, index, data: data && spool };
  } catch (error) {
    await spool.close();
    throw error;
  }
}

async function encodePiece({ number, data, zero, bytes }: PieceContent) {
  const frame = bytes.length === 0 ? Buffer.alloc(0) : await compressed(bytes, LEVEL);
  const piece: Omit<Piece, 'place'> = {
    number,
    data,
    zero,
    stored: frame.length,
    digest: recordDigest(frame),
    content: recordDigest(bytes),
  };
  return { piece, frame, length: bytes.length };
}

/** An unnamed file for a data blob: its digest is known only when it is complete. */
class Spool {
  readonly #hash = createHash('sha256');
  #size = 0;

  private constructor(private readonly file: FileHandle) {}

  /** On a disk, because /tmp may be in memory. */
  static async make(): Promise<Spool> {
    return new Spool(await openUnnamed(process.env.TMPDIR ?? '/var/tmp'));
  }

  async write(frame: Buffer): Promise<void> {
    this.#hash.update(frame);
    await this.file.write(frame, 0, frame.length, this.#size);
    this.#size += frame.length;
  }

  /** null: nothing was written. */
  finish(): Blob | null {
    return this.#size === 0
      ? null
      : { digest: `sha256:${this.#hash.digest('hex')}`, size: this.#size };
  }

  async *read(signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < this.#size;) {
      if (signal?.aborted) throw cancelled('the push', signal);
      const chunk = Buffer.allocUnsafeSlow(Math.min(CHUNK, this.#size - at));
      const { bytesRead } = await this.file.read(chunk, 0, chunk.length, at);
      if (bytesRead === 0)
        throw new PcowError('PCOW_IO', 'the temporary file of the push has become shorter');
      yield chunk.subarray(0, bytesRead);
      at += bytesRead;
    }
  }

  close(): Promise<void> {
    return this.file.close();
  }
}
