// The counter on Node's cluster: every request sends an increment message to the master, and the master sends the new
// total to each worker. This is what examples/counter does, written with what Node offers for it.
'use strict';

const cluster = require('node:cluster');
const http = require('node:http');

if (cluster.isPrimary) {
  let total = 0;
  const tellAll = () => {
    for (const worker of Object.values(cluster.workers)) worker.send({ cmd: 'total', total });
  };
  cluster.on('message', (worker, message) => {
    if (message.cmd !== 'increment') return;
    total += 1;
    tellAll();
  });
  cluster.on('exit', () => process.exit(1)); // a benchmark of fewer workers would measure something else
  for (let i = 0; i < Number(process.env.WORKERS); i++) cluster.fork();
} else {
  let total = 0;
  process.on('message', (message) => {
    if (message.cmd === 'total') total = message.total;
  });
  http
    .createServer((request, response) => {
      process.send({ cmd: 'increment' });
      response.setHeader('Content-Type', 'text/plain');
      response.end(`Worker in process ${process.pid} says cluster has responded to ${total} requests.\n`);
    })
    .listen(Number(process.env.PORT), '127.0.0.1');
}
