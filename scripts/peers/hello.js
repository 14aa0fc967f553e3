// Hello world on Node's cluster: default settings, WORKERS processes behind one PORT.
'use strict';

const cluster = require('node:cluster');
const http = require('node:http');

if (cluster.isPrimary) {
  for (let i = 0; i < Number(process.env.WORKERS); i++) cluster.fork();
  cluster.on('exit', () => process.exit(1)); // a benchmark of fewer workers would measure something else
} else {
  http
    .createServer((request, response) => {
      response.setHeader('Content-Type', 'text/plain');
      response.end('Hello, world!\n');
    })
    .listen(Number(process.env.PORT), '127.0.0.1');
}
