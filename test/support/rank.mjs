// rank.mjs ENGINE RANK SIZE SECONDS ENGINE_OPTIONS: one rank of a communicator. Its offer goes out as a line, everybody's come in as a line;
// then each line {"call": NAME, "values": [...]} is done and answered with {"values": [...]} or {"error": CODE, "message": TEXT}.
import { createInterface } from "node:readline";
import { native } from "../../dist/native.js";

const [engine, rank, size, seconds, engineOptions] = process.argv.slice(2);
const device = native().openDevice("cpu", '{"threads": 1}');
const setup = device.createCommunicator({
  engine,
  rank: Number(rank),
  size: Number(size),
  timeoutSeconds: Number(seconds),
  engineOptions,
});
const tell = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const hear = async () => JSON.parse((await lines.next()).value ?? "null");

tell(Buffer.from(await setup.offer().promise).toString("base64"));
const offers = (await hear()).map((offer) => new Uint8Array(Buffer.from(offer, "base64")));
const communicator = await setup.connect(offers).promise;
setup.dispose();
tell({ rank: communicator.rank, size: communicator.size, description: communicator.description });

const calls = {
  allReduce: async (tensor) => {
    await communicator.allReduce(tensor, { op: "sum", ordered: true }).promise;
    return tensor;
  },
  allGather: async (tensor, count) => {
    const whole = await device.upload(new Float32Array(count * communicator.size), [
      count * communicator.size,
    ]).promise;
    await communicator.allGather(whole, tensor).promise;
    return whole;
  },
  reduceScatter: async (tensor, count) => {
    const part = await device.upload(new Float32Array(count / communicator.size), [count / communicator.size])
      .promise;
    await communicator.reduceScatter(part, tensor, { op: "max", ordered: false }).promise;
    return part;
  },
  broadcast: async (tensor) => {
    await communicator.broadcast(tensor, 1).promise;
    return tensor;
  },
};

for (let order = await hear(); order; order = await hear()) {
  try {
    const tensor = await device.upload(Float32Array.from(order.values), [order.values.length]).promise;
    const result = await calls[order.call](tensor, order.values.length);
    tell({ values: [...(await result.download().promise)] });
  } catch (error) {
    tell({ error: error.code, message: error.message });
  }
}
communicator.dispose();
device.dispose();
process.exit(0);
