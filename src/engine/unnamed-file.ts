/** Files without a name: they take disk space until this process ends, however it ends. */
import { type FileHandle, open, unlink } from 'node:fs/promises';
import path from 'node:path';

/** Opens an empty one in a directory. Meanwhile, other programs can open it at `pathOf`. */
export async function openUnnamed(directory: string): Promise<FileHandle> {
  const name = path.join(directory, `.pcow-${process.pid}-${performance.now()}`);
  const handle = await open(name, 'wx+');
  await unlink(name).catch(async (error: unknown) => {
    await handle.close();
    throw error;
  });
  return handle;
}

export function pathOf({ fd }: FileHandle): string {
  return `/proc/${process.pid}/fd/${fd}`;
}
